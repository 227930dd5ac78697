"""Which files a path, a directory or a glob stands for."""

import glob
import os
from collections.abc import Iterator
from pathlib import Path

from distill_jax.data.compressed import plain_name
from distill_jax.data.formats import METADATA, OF_SUFFIX, is_metadata
from distill_jax.types import UserError
from distill_jax.untrusted import check_file, read_json_object

_STATE, _SPLITS = "state.json", "dataset_dict.json"  # of a directory that datasets saved


def files_of(pattern: str, form: str = "") -> list[Path]:
    """The file, or the files of a directory, or those that the glob matches, in their order.

    Of directories those are taken that files_in gives, or all where their format is given; of a
    glob that matches files and directories the files alone. Raises UserError where there is none.
    """
    found = [pattern] if Path(pattern).exists() else sorted(glob.glob(pattern, recursive=True))
    paths = [Path(path) for path in found]
    files = [path for path in paths if path.is_file()]
    directories = [path for path in paths if path.is_dir()]
    if not files and directories:
        files = [file for directory in directories for file in files_in(directory, form)]
        if not files:
            raise UserError(
                f"{pattern!r} has no file that is read ({', '.join(OF_SUFFIX)}; what is"
                " text also .gz or .zst): give another directory, or --config.data.format"
            )
    if not files:
        if paths:
            check_file(paths[0])  # says what it is
        raise UserError(f"{pattern!r} matches no file: give a file, a directory or a glob")
    return files


def files_in(directory: Path, form: str = "") -> list[Path]:
    """The files of a directory, and of those in it, that hold text: records, or else texts.

    What begins with a point is left out, and what describes data. Texts beside records describe
    these. Of a directory that the library datasets saved, the shards of the split train, or of its
    only split.
    """
    if (directory / _SPLITS).is_file():
        directory = _split_in(directory)
    if (directory / _STATE).is_file():
        return _shards(directory)
    if form:
        return [*_walk(directory)]
    files = [path for path in _walk(directory) if _format(path)]
    records = [path for path in files if _format(path) != "text" and not is_metadata(path)]
    return records or [path for path in files if _format(path) == "text"]


def left_out(pattern: str, form: str = "") -> list[str]:
    """What files_of leaves out of a directory, but for what describes data or begins with a point.

    Also what is no file (FIFOs, links to what is gone), and links to directories.
    """
    if not Path(pattern).is_dir():
        return []
    left = {*_walk(Path(pattern), files_only=False)} - {*files_of(pattern, form)}
    return sorted(str(p.relative_to(pattern)) for p in left if p.name not in METADATA)


def _walk(directory: Path, *, files_only: bool = True) -> Iterator[Path]:
    """All files in their order, what begins with a point left out.

    files_only: or else also what is there and is not read: links to directories, and no files.
    """
    for folder, folders, names in os.walk(directory):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        links = [] if files_only else [n for n in folders if Path(folder, n).is_symlink()]
        for name in sorted([*names, *links]):
            path = Path(folder, name)
            if not name.startswith(".") and (path.is_file() or not files_only):
                yield path


def _format(path: Path) -> str:
    return OF_SUFFIX.get(plain_name(path).suffix.lower(), "")


def _split_in(directory: Path) -> Path:
    splits = read_json_object(directory / _SPLITS).get("splits")
    if not isinstance(splits, list) or not splits or not all(isinstance(s, str) for s in splits):
        raise UserError(f"{directory / _SPLITS} names no splits: save the data set again")
    split = "train" if "train" in splits else splits[0]
    if len(splits) > 1 and split != "train":
        raise UserError(
            f"{directory} has the splits {', '.join(splits)[:200]}: give the directory of one"
        )
    return directory / _name(split, directory / _SPLITS)


def _shards(directory: Path) -> list[Path]:
    path = directory / _STATE
    files = read_json_object(path).get("_data_files")
    if not isinstance(files, list) or not all(isinstance(file, dict) for file in files):
        raise UserError(f"{path} names no files of data: save the data set again")
    found = [directory / _name(file.get("filename"), path) for file in files]
    for file in found:
        check_file(file)
    return found


def _name(value: object, where: Path) -> str:
    """A name of a file beside another. Raises UserError for what leads elsewhere."""
    if not isinstance(value, str) or value in ("", ".", "..") or not {*value}.isdisjoint("/\\\0"):
        raise UserError(f"{where} names the file {str(value)[:40]!r}: save the data set again")
    return value
