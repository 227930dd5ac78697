"""Which format a data file has, and what to do about a file that has none of them."""

import re
import shlex
from pathlib import Path

from distill_jax.data.compressed import SUFFIXES, open_bytes, packing_of, plain_name
from distill_jax.types import UserError
from distill_jax.untrusted import parse_json

# What data.format may say, and the suffixes that say it by themselves, in any case; .gz or .zst may
# follow those of texts.
FORMATS = {
    "text": (".txt", ".md", ".rst"),
    "jsonl": (".jsonl", ".ndjson"),
    "json": (".json",),
    "csv": (".csv",),
    "tsv": (".tsv",),
    "parquet": (".parquet",),
    "arrow": (".arrow", ".feather"),
}
OF_SUFFIX = {suffix: name for name, suffixes in FORMATS.items() for suffix in suffixes}
# Of data sets that the library datasets saved, or the hub holds.
METADATA = ("dataset_info.json", "dataset_infos.json", "dataset_dict.json", "state.json")
TABLES = ("parquet", "arrow")  # are compressed in themselves

# Bytes that are looked at: there may be many files, and the first line of one may be long.
_SHORT_HEAD, _HEAD = 1 << 12, 1 << 20
_UNPACKED_BY = {"gzip": "gunzip -c", "zstd": "zstd -dc"}
_OTHERS = {b"BZh": "bunzip2 -c", b"\xfd7zXZ\x00": "xz -dc", b"PK\x03\x04": "unzip -p"}
_OTHER_SUFFIXES = (".bz2", ".xz", ".zip")
_UTF_32 = (b"\xff\xfe\0\0", b"\0\0\xfe\xff")  # the first is how UTF-16 begins, too
_UTF_16 = (b"\xff\xfe", b"\xfe\xff")
_TABLE_MARKS = {b"PAR1": "parquet", b"ARROW1": "arrow"}


def format_of(path: Path, form: str = "") -> str:
    """The format of a file by its suffix, or `form` if it is not empty.

    Raises UserError, with the remedy for this very file, where the suffix is not known or the
    first bytes are of another format.
    """
    plain = plain_name(path)
    found = form or OF_SUFFIX.get(plain.suffix.lower(), "")
    long = not found or found == "json"
    try:
        with open(path, "rb") as file:
            raw = file.read(_SHORT_HEAD)
        _check_packing(path, plain, raw, found)
        with open_bytes(path) as file:
            head = file.read(_HEAD if long else _SHORT_HEAD)
    except OSError as error:
        raise unreadable(path, error) from error
    if found in TABLES:
        return found
    if table := next((t for mark, t in _TABLE_MARKS.items() if head.startswith(mark)), ""):
        raise UserError(
            f"{path} is a file of {table} by its content: rename it to .{table} or give"
            f" --config.data.format={table}"
        )
    if found not in ("", "text") and head.startswith(_UTF_32 + _UTF_16):
        raise not_text(head, str(path))
    if found in ("json", "jsonl"):
        return _json_of(path, head, found)
    if found:
        return found
    raise _unknown(path, head)


def _check_packing(path: Path, plain: Path, head: bytes, found: str) -> None:
    """Raises UserError for a file that is compressed, or not, in a way that is not read."""
    packing, suffix = packing_of(head), path.suffix.lower()
    for magic, command in _OTHERS.items():
        if head.startswith(magic):
            target = path.with_suffix("") if suffix in _OTHER_SUFFIXES else f"{path}.plain"
            raise UserError(
                f"{path} is compressed in a way that is not read (gzip and zstd are): unpack it"
                f" with {command} {_quoted(path)} > {_quoted(target)}"
            )
    if plain != path and packing != SUFFIXES[suffix]:
        what = f"is {packing} by its content" if packing else f"is no {SUFFIXES[suffix]} file"
        raise UserError(f"{path} {what if head else 'is empty'}: rename it, or copy it again")
    if packing and found in TABLES:
        target = plain if plain != path else f"{path}.plain"
        raise UserError(
            f"{path} is compressed as a whole, and {found} can only be read unpacked: unpack it"
            f" with {_UNPACKED_BY[packing]} {_quoted(path)} > {_quoted(target)}"
        )


def _json_of(path: Path, head: bytes, found: str) -> str:
    """json for one array and jsonl for records on lines, whatever the suffix says."""
    if _is_array(head):
        return "json"
    if found == "json" and head.lstrip(b"\xef\xbb\xbf \t\r\n").startswith(b"{"):
        if _first_line_is_record(head):
            return "jsonl"
        raise _object(path)
    return found


def is_metadata(path: Path) -> bool:
    """Whether a file among records describes them: one JSON object, or one by its name."""
    if path.name in METADATA:
        return True
    if plain_name(path).suffix.lower() != ".json":
        return False
    with open_bytes(path) as file:
        head = file.read(_HEAD)
    return head.lstrip().startswith(b"{") and not _first_line_is_record(head)


def unreadable(path: Path, error: OSError) -> UserError:
    """The error for a file that the system does not give."""
    return UserError(f"{path} cannot be read ({error.strerror or error}): make it readable")


def not_text(content: bytes, where: str) -> UserError | None:
    """The error for bytes that are no UTF-8 text, None where they are."""
    if content.startswith(_UTF_32 + _UTF_16):
        name = "UTF-32" if content.startswith(_UTF_32) else "UTF-16"
        return UserError(
            f"{where} is {name}, not UTF-8: convert it with iconv -f {name} -t UTF-8 FILE > NEW"
        )
    if b"\0" in content:
        return UserError(
            f"{where}: byte {content.index(0)} is 0, as in binary files: write its text as UTF-8"
        )
    try:
        content.decode("utf-8")
    except UnicodeDecodeError as error:
        return UserError(
            f"{where}: byte {error.start} (0x{content[error.start]:02x}) is not UTF-8: "
            "convert the file to UTF-8"
        )
    return None


def _unknown(path: Path, head: bytes) -> UserError:
    """Why a file of an unknown suffix is not read, and what to do."""
    suffix = plain_name(path).suffix
    what = f"its suffix {suffix} is" if suffix else "its name has no suffix, which is"
    if not head.startswith(_UTF_32 + _UTF_16) and b"\0" in head:
        return UserError(
            f"{path} is a binary file and {what} not known: write its text to a .txt file, or"
            " records to .jsonl or .parquet"
        )
    for is_it, form in ((_is_array, "json"), (_first_line_is_record, "jsonl")):
        if is_it(head):
            return UserError(
                f"{path} has JSON records and {what} not known: give --config.data.format={form} or"
                f" rename it to .{form}"
            )
    if head.lstrip().startswith(b"{"):
        return _object(path)
    records = [
        suffix for name, suffixes in FORMATS.items() if name != "text" for suffix in suffixes
    ]
    return UserError(
        f"{path}: {what} not known: texts are {', '.join(FORMATS['text'])}, records"
        f" {', '.join(records)}; if it is a text, give --config.data.format=text"
    )


def _object(path: Path) -> UserError:
    return UserError(
        f"{path} is one JSON object over many lines, which is not read: write its records as one"
        " array, or to a .jsonl file, one per line"
    )


def _is_array(head: bytes) -> bool:
    return re.match(rb"(\xef\xbb\xbf)?\s*\[\s*([{\]]|$)", head) is not None


def _first_line_is_record(head: bytes) -> bool:
    line = head.lstrip(b"\xef\xbb\xbf \t\r\n").split(b"\n", 1)[0]
    if head.endswith(line) and len(head) == _HEAD:
        return line.startswith(b"{")  # its end is not there: an object over lines has short ones
    try:
        return isinstance(parse_json(line, "", ""), dict)
    except UserError:
        return False


def _quoted(path: Path | str) -> str:
    return shlex.quote(str(path))
