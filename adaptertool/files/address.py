"""Addresses in object stores: `s3://bucket/key`, `gs://bucket/key`, and `az://container/key` of Azure, whose account is
in the environment."""

from __future__ import annotations

import re
from pathlib import PosixPath

from adaptertool.errors import UsageError, shown
from adaptertool.patterns import regex

SCHEMES = ("s3", "gs", "az")
_TYPED = regex(rf"({'|'.join(SCHEMES)}):/{{1,2}}(.*)", re.DOTALL | re.IGNORECASE)  # schemes have no case
# What is read from nowhere, or is no path. With one slash, as pathlib has it, where there can be no doubt
_OTHERS = regex(r"(https?|ftp|hf|file|gcs|s3a|s3n|abfss?|wasbs?|hdfs):/{1,2}|([a-z][a-z0-9+.-]*)://", re.IGNORECASE)
_INSTEAD = {
    "file": "give the path alone",
    "hf": "a model of the hub is given as ORG/NAME, after `hf download ORG/NAME`",
    "gcs": "Google Cloud Storage is gs://",
    **dict.fromkeys(("s3a", "s3n"), "S3 is s3://"),
    **dict.fromkeys(
        ("abfs", "abfss", "wasb", "wasbs"), "Azure is az://CONTAINER/PATH, with the account in the environment"
    ),
}
# A model of the hub, by the address of its page
_HUB = regex(
    r"(?:https?:/+(?:www\.)?(?:huggingface\.co|hf\.co)/+|hf:/+)(\w[\w.-]*/[\w.-]+)(?:/(?:tree|blob|resolve)/[\w./-]*)?/?"
)
_BUCKET = regex(r"[A-Za-z0-9][\w.-]*", re.ASCII)
_SIGNED = regex(r"\?.*(signature|credential|token|sig|key)[^=]*=", re.IGNORECASE | re.DOTALL)


class Address(PosixPath):
    """A path in an object store, which is printed as it is typed. What it holds (`name`, `parent`, `/`) is that of any
    path; it leads to where it says; and nothing else of it may be asked, since that would ask the disk."""

    def __str__(self) -> str:
        first, slash, rest = super().__str__().partition("/")
        return f"{first}//{rest}" if slash and first[:-1] in SCHEMES and first.endswith(":") else first + slash + rest

    def resolve(self, strict: bool = False) -> Address:  # noqa: ARG002
        return self


def address(text: str, what: str) -> Address | None:
    """The address that somebody typed; None where it is a path of this machine. `what` it is for.

    Raises UsageError for what no store has, or what must not stand there. What may be a secret is not repeated.
    """
    if (found := _TYPED.fullmatch(text)) is None:
        _require_path(text, what)
        return None
    scheme, rest = found[1].lower(), found[2]
    bucket, _, key = rest.partition("/")
    if "@" in bucket or ":" in bucket or _SIGNED.search(rest):
        raise UsageError(
            f"{what} is an address of {scheme}:// with something like a key or a signature in it, which would be seen "
            "by all who see commands and logs: give the address alone; credentials are taken from the environment"
        )
    if not _BUCKET.fullmatch(bucket):
        raise UsageError(f"{what} {shown(text)} names no bucket: an address is {scheme}://BUCKET/PATH")
    parts = key.rstrip("/").split("/") if key.rstrip("/") else []
    if wrong := next((part for part in parts if part in ("", ".", "..") or not part.isprintable()), None):
        raise UsageError(f"{what} {shown(text)} has a part '{shown(wrong)}', which no key has that could be read")
    if "" in parts:
        raise UsageError(f"{what} {shown(text)} has two slashes one after the other; a store takes them for a name")
    return Address(f"{scheme}:", bucket, *parts)


def _require_path(text: str, what: str) -> None:
    """Raise UsageError for an address of another kind. It may hold a password or a signature: it is not repeated."""
    if (found := _OTHERS.match(text)) is None:
        return
    scheme = (found[1] or found[2]).lower()
    if hub := _HUB.fullmatch(text):
        raise UsageError(
            f"{what} is the address of a page ({scheme}://), which is not read: `hf download {hub[1]}` first, and give "
            f"{hub[1]}"
        )
    hint = _INSTEAD.get(scheme, "download it, and give the path; of stores s3://, gs:// and az:// are read")
    raise UsageError(f"{what} is an address of {scheme}://, which is not read: {hint}")
