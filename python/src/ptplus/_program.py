"""The `ptplus` program from Python: a thin layer over its `--json`, with errors as exceptions."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Union

Argument = Union[str, int, float, "os.PathLike[str]"]
Document = dict[str, Any]


class Error(Exception):
    """A command failed. Its subclasses follow the program's exit codes; this one itself is exit code 1.

    `code`: the stable code of docs/ERRORS.md, such as "convention-open"; `exit_code`: the program's;
    `file`, `field`, `offset`: where, as far as known; `message`: what; `details`: every finding, where there are several;
    `hints`: what would help; `document`: what the program printed with `--json`, or None.
    """

    def __init__(
        self,
        message: str,
        *,
        code: str = "other",
        exit_code: int = 1,
        file: str | None = None,
        field: str | None = None,
        offset: int | None = None,
        details: Sequence[Any] = (),
        hints: Sequence[str] = (),
        document: Document | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.code = code
        self.exit_code = exit_code
        self.file = file
        self.field = field
        self.offset = offset
        self.details = list(details)
        self.hints = list(hints)
        self.document = document

    @property
    def hint(self) -> str | None:
        """The first of `hints`."""
        return self.hints[0] if self.hints else None

    def __str__(self) -> str:
        place = ": ".join(p for p in (self.file, self.field) if p is not None and p not in self.message)
        text = f"{place}: {self.message}" if place else self.message
        return "\n".join([f"{text} [{self.code}]", *(f"hint: {h}" for h in self.hints)])


class UsageError(Error):
    """Exit code 2: the call makes no sense, or the output exists already."""


class InvalidInput(Error):
    """Exit code 3: corrupt or hostile input, NaN or Inf."""


class DoesNotFit(Error):
    """Exit code 4: the adapter does not fit the base; missing or left-over weights."""


class NumbersDiffer(Error):
    """Exit code 5: the numbers differ, or the adapter has no effect."""


class IntegrityFailed(Error):
    """Exit code 6: a hash or signature does not hold."""


class Unsupported(Error):
    """Exit code 7: unsupported, or undecided."""


_BY_EXIT_CODE: dict[int, type[Error]] = {
    2: UsageError,
    3: InvalidInput,
    4: DoesNotFit,
    5: NumbersDiffer,
    6: IntegrityFailed,
    7: Unsupported,
}


def find_program() -> str:
    """The path of the `ptplus` program: $PTPLUS, else the one that this package was installed with, else that on the path.

    Raises `FileNotFoundError` when there is none.
    """
    stated = os.environ.get("PTPLUS")
    if stated:
        return stated
    name = "ptplus" + (".exe" if sys.platform == "win32" else "")
    folders = [sysconfig.get_path("scripts")]
    user_scheme = sysconfig.get_preferred_scheme("user")
    folders.append(sysconfig.get_path("scripts", scheme=user_scheme))
    # `pip install --target FOLDER` puts it into FOLDER/bin.
    folders.append(str(Path(__file__).resolve().parent.parent / "bin"))
    for folder in folders:
        path = os.path.join(folder, name)
        if os.path.isfile(path):
            return path
    found = shutil.which("ptplus")
    if found is None:
        raise FileNotFoundError(f"no ptplus program: neither in {', '.join(folders)} nor on the path")
    return found


def _flags(options: dict[str, Any]) -> list[str]:
    """{"max_error": ["kl=1e-3"], "force": True} -> ["--max-error=kl=1e-3", "--force"]"""
    out: list[str] = []
    for name, value in options.items():
        flag = "--" + name.rstrip("_").replace("_", "-")
        if value is None or value is False:
            continue
        if value is True:
            out.append(flag)
            continue
        values = value if isinstance(value, (list, tuple)) else [value]
        # One word each: a value that begins with a dash is still a value.
        out.extend(f"{flag}={os.fspath(v) if isinstance(v, os.PathLike) else v}" for v in values)
    return out


def run(command: str, *arguments: Argument, **options: Any) -> Any:
    """Runs `ptplus COMMAND ARGUMENTS... --json` and returns the document that it prints.

    Options are the command's flags with underscores: `base="BASE"` is `--base BASE`, `force=True` is `--force`, a list
    repeats the flag, None and False leave it out.

        ptplus.run("convert", "out", output="a.gguf", base="BASE", probe="out/probe.safetensors")
        ptplus.run("verify", "a.gguf", base="BASE", probe="out/probe.safetensors")["metrics"]["max_abs"]

    A command over many adapters (`convert` with a list of them, or with `jobs`) returns a list of documents, one for
    each; it raises nothing for those that failed, since the others were made: look at their `status`.

    Raises `Error` or the subclass of the exit code, and `FileNotFoundError` when the program is missing.
    """
    words = [os.fspath(a) if isinstance(a, os.PathLike) else str(a) for a in arguments]
    # `--`: an argument that begins with a dash is still an argument.
    line = [find_program(), command, "--json", *_flags(options), *(["--", *words] if words else [])]
    done = subprocess.run(line, stdin=subprocess.DEVNULL, capture_output=True, text=True, encoding="utf-8", errors="replace")
    documents = _documents(done.stdout)
    if documents and "summary" in documents[-1]:
        return documents[:-1]
    document = documents[0] if documents else None
    if done.returncode == 0 and document is not None:
        return document
    if done.returncode == 0:
        raise UsageError(f"{command!r} prints no document", code="usage", exit_code=2)
    raise _error(command, done.returncode, document, done.stderr)


def _documents(text: str) -> list[Document]:
    """One document over several lines, or one a line."""
    decoder, out, at = json.JSONDecoder(), [], 0
    while text[at:].strip():
        at += len(text[at:]) - len(text[at:].lstrip())
        try:
            document, at = decoder.raw_decode(text, at)
        except json.JSONDecodeError:
            return []
        if not isinstance(document, dict):
            return []
        out.append(document)
    return out


def _error(command: str, exit_code: int, document: Document | None, stderr: str) -> Error:
    kind = _BY_EXIT_CODE.get(exit_code, Error)
    stated = (document or {}).get("error")
    if isinstance(stated, dict):
        return kind(
            str(stated.get("message", "")),
            code=str(stated.get("code", "other")),
            exit_code=exit_code,
            file=stated.get("file"),
            field=stated.get("field"),
            offset=stated.get("offset"),
            details=stated.get("details") or (),
            hints=stated.get("hints") or (),
            document=document,
        )
    # A failed check is data in a document: what failed is in its `failures` or `findings`.
    findings = (document or {}).get("failures") or (document or {}).get("findings") or []
    message = "; ".join(_finding(f) for f in findings)
    message = message or stderr.strip() or f"ptplus {command} ended with exit code {exit_code}"
    codes = [f["code"] for f in findings if isinstance(f, dict) and f.get("code")]
    checked = next(((document or {})[key] for key in ("adapter", "bundle", "path") if key in (document or {})), None)
    return kind(
        message,
        code=codes[0] if codes else "other",
        exit_code=exit_code,
        file=checked if isinstance(checked, str) else None,
        details=findings,
        document=document,
    )


def _finding(finding: Any) -> str:
    if not isinstance(finding, dict):
        return str(finding)
    if "message" in finding:
        return str(finding["message"])
    return f"{finding.get('place')}: expected {finding.get('expected')}, found {finding.get('found')}"
