"""Requests to object stores, by obstore 0.12 (https://developmentseed.org/obstore), which speaks to S3, to Google's
and to Azure's, signs, and asks again: imported by the first request, so without an address it need not be there.

Credentials are those that the environment names. Where it names none obstore would ask an address of the local network
for them, as on machines of a cloud: only where a variable says so is that done.
"""

from __future__ import annotations

import functools
import os
import re
from collections.abc import Callable, Mapping
from datetime import timedelta
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from adaptertool.errors import AdapterToolError, InputError, StorageError, shown
from adaptertool.files.threads import Threads, waited

Result = TypeVar("Result")

_RETRIES, _RETRY_FOR = 10, 60  # times and seconds that obstore asks again, from 0.1 s on in growing distances
_TIMEOUTS = {"timeout": "300s", "read_timeout": "30s", "connect_timeout": "10s"}  # a whole reply, a pause in it
_UNSIGNED = "GOOGLE_SKIP_SIGNATURE"
_CUT = 6  # times that a call is made whose reply breaks off: once that has begun obstore does not ask again


class Service(NamedTuple):
    """What belongs to a scheme: how variables of the environment begin, one of which must be there."""

    name: str
    client: str  # in obstore.store
    prefix: str
    endpoints: tuple[str, ...]
    credentials: tuple[str, ...]
    files: tuple[str, ...]  # in the home directory, in the place of variables
    hint: str


SERVICES: Mapping[str, Service] = {
    "s3": Service(
        "S3",
        "S3Store",
        "AWS_",
        ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL", "AWS_ENDPOINT"),
        (
            "AWS_ACCESS_KEY_ID", "AWS_WEB_IDENTITY_TOKEN_FILE", "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI",
            "AWS_CONTAINER_CREDENTIALS_FULL_URI", "AWS_SKIP_SIGNATURE", "AWS_METADATA_ENDPOINT",
        ),
        (),
        "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY (of a profile: `aws configure export-credentials --format "
        "env`), AWS_SKIP_SIGNATURE=true for a public bucket, or on EC2 AWS_METADATA_ENDPOINT=http://169.254.169.254",
    ),
    "gs": Service(
        "Google Cloud Storage",
        "GCSStore",
        "GOOGLE_",
        ("GOOGLE_BASE_URL",),
        (
            "GOOGLE_APPLICATION_CREDENTIALS", "GOOGLE_SERVICE_ACCOUNT", "GOOGLE_SERVICE_ACCOUNT_PATH",
            "GOOGLE_SERVICE_ACCOUNT_KEY", "GOOGLE_BEARER_TOKEN", "GOOGLE_SKIP_SIGNATURE", "GCE_METADATA_HOST",
        ),
        (".config/gcloud/application_default_credentials.json",),
        "run `gcloud auth application-default login`, or set GOOGLE_APPLICATION_CREDENTIALS, "
        "GOOGLE_SKIP_SIGNATURE=true for a public bucket, or on a machine of Google's "
        "GCE_METADATA_HOST=metadata.google.internal",
    ),
    "az": Service(
        "Azure",
        "AzureStore",
        "AZURE_",
        ("AZURE_STORAGE_ENDPOINT", "AZURE_ENDPOINT"),
        (
            "AZURE_STORAGE_ACCOUNT_KEY", "AZURE_STORAGE_ACCESS_KEY", "AZURE_STORAGE_SAS_KEY", "AZURE_STORAGE_SAS_TOKEN",
            "AZURE_STORAGE_TOKEN", "AZURE_STORAGE_CLIENT_SECRET", "AZURE_CLIENT_SECRET", "AZURE_FEDERATED_TOKEN_FILE",
            "AZURE_USE_AZURE_CLI", "AZURE_SKIP_SIGNATURE", "AZURE_STORAGE_USE_EMULATOR", "AZURE_MSI_ENDPOINT",
        ),
        (),
        "set AZURE_STORAGE_ACCOUNT_NAME, and AZURE_STORAGE_ACCOUNT_KEY, a SAS token, a client secret, "
        "AZURE_USE_AZURE_CLI=true, or AZURE_SKIP_SIGNATURE=true for a public container",
    ),
}  # fmt: skip


def key_of(path: Path) -> str:
    """The key of an object in its bucket."""
    return "/".join(path.parts[2:])


def client_of(path: Path) -> Any:
    """The client of the bucket of an address. Raises StorageError without obstore, or without credentials."""
    scheme = path.parts[0][:-1]
    library(scheme)  # first: who has set the variables is not to be told then that they were of no use yet
    service = SERVICES[scheme]
    given = {name: text for name, text in os.environ.items() if name.startswith((service.prefix, "GCE_METADATA_HOST"))}
    named = any(given.get(name) for name in service.credentials)
    if not named and not any((Path.home() / name).is_file() for name in service.files):
        raise StorageError(
            f"{path.parts[0]}//{shown(path.parts[1])} needs credentials of {service.name}, and there are none: "
            f"{service.hint}"
        )
    return _client(scheme, path.parts[1], tuple(sorted(given.items())), os.getpid())


def require_signing(path: Path) -> None:
    """Raise StorageError where a client would not sign what it writes: that of Google takes no such variable then, and
    would ask an address of the local network for credentials."""
    service = SERVICES["gs"]
    others = [name for name in service.credentials if name != _UNSIGNED and os.environ.get(name)]
    if path.parts[0] == "gs:" and os.environ.get(_UNSIGNED) and not others:
        raise StorageError(
            f"{path.parts[0]}//{shown(path.parts[1])} cannot be written to without credentials ({_UNSIGNED} is set): "
            f"{service.hint}"
        )


@functools.lru_cache(maxsize=64)
def _client(scheme: str, bucket: str, environment: tuple[tuple[str, str], ...], _process: int) -> Any:
    """A client for these variables, which it takes from the environment itself."""
    obstore = library(scheme)
    if _user.setdefault("process", os.getpid()) != os.getpid():
        raise StorageError(
            f"this process was forked from one that has used {scheme}://, whose threads it lacks: start it by "
            "`spawn`, or fork before"
        )
    service, given = SERVICES[scheme], dict(environment)
    endpoint = next((given[name] for name in service.endpoints if given.get(name)), "")
    options: dict[str, Any] = dict(_TIMEOUTS)
    if endpoint.startswith("http:"):
        options["allow_http"] = True
    retries = {"max_retries": _RETRIES, "retry_timeout": timedelta(seconds=_RETRY_FOR)}
    more: dict[str, Any] = {}
    if scheme == "gs" and endpoint:
        more["base_url"] = endpoint
    if scheme == "s3" and not endpoint:  # others than AWS may not know it, and check the signed hash as well
        more["checksum_algorithm"] = "SHA256"
    try:
        return getattr(obstore.store, service.client)(bucket, client_options=options, retry_config=retries, **more)
    except Exception as error:  # a variable that is not what it must be: its text is not repeated
        raise StorageError(
            f"the variables {service.prefix}* of the environment do not make a client of {service.name} "
            f"({type(error).__name__}): {service.hint}"
        ) from error


def library(scheme: str) -> Any:
    """obstore. Raises StorageError where it is not installed."""
    try:
        import obstore.store  # noqa: PLC0415  # optional, and of no use without an address
    except ImportError as error:
        raise StorageError(f"{scheme}:// needs the library obstore: pip install 'adaptertool[stores]'") from error
    return obstore


_user: dict[str, int] = {}  # the process that uses obstore: what is forked from it has none of its threads


_ASKING, RANGES = Threads(), Threads()


def ask(path: Path, doing: str, call: Callable[[Any, Any, str], Result]) -> Result:
    """What a call returns of (obstore, the client of that address, the key): one that may be made twice, as that is
    done where the reply breaks off. A signal ends the wait for it.

    Raises what `told` makes of its errors.
    """
    client = client_of(path)
    future = _ASKING.submit(functools.partial(_again, call, library(path.parts[0]), client, key_of(path)))
    waited(future)
    if (error := future.exception()) is not None:
        raise told(error, path, doing) from error
    return future.result()


def is_gone(error: BaseException) -> bool:
    """Whether there is no such object."""
    return isinstance(error, FileNotFoundError)


def told(error: BaseException, path: Path, doing: str) -> AdapterToolError:
    """The error of ours for one of obstore's, whose own text holds addresses that may be signed: of that only the
    status and the code are told."""
    if isinstance(error, AdapterToolError):
        return error
    kind, text = type(error).__name__, str(error)
    why = reason(error)
    if "NoSuchBucket" in text or "ContainerNotFound" in text:
        return InputError(f"{path.parts[0]}//{shown(path.parts[1])} does not exist: there is no such bucket")
    if is_gone(error) or isinstance(error, ValueError):  # or no key has such a name
        return InputError(f"{path} does not exist")
    if kind == "PreconditionError":
        return InputError(f"{path} changed since it was first read; nothing was published, run again")
    service = SERVICES[path.parts[0][:-1]]
    if kind in ("PermissionDeniedError", "UnauthenticatedError"):
        return StorageError(
            f"{path} cannot be {doing}: {service.name} refuses it ({why}). Are the credentials in the environment "
            f"({service.prefix}*) those for this bucket?"
        )
    hint = ""
    if "redirect" in text or "AuthorizationHeaderMalformed" in text:
        hint = "; the bucket may be in another region: set AWS_REGION"
    return StorageError(f"{path} cannot be {doing}: {why}{hint}")


def reason(error: BaseException) -> str:
    """Why a request failed, in short, and without any address."""
    text = str(error)
    if found := re.search(r"status code: (\d{3}[ A-Za-z]*)", text):
        code = re.search(r"<Code>(\w{1,80})</Code>", text)
        return found[1].strip() + (f", {code[1]}" if code else "")
    if found := re.search(r"kind: (Connect|Timeout|Request|Interrupted|Decode)\b", text):
        ways = {"Connect": "it cannot be reached", "Timeout": "it does not answer in time"}
        return ways.get(found[1], "the connection broke off, several times")
    return f"the store's answer is not understood ({type(error).__name__})"


def _again(call: Callable[[Any, Any, str], Result], obstore: Any, client: Any, key: str) -> Result:
    """What a call returns whose reply is whole. Raises what the last of them raised."""
    for _ in range(_CUT - 1):
        try:
            return call(obstore, client, key)
        except obstore.exceptions.GenericError as error:
            if not re.search(r"kind: (Interrupted|Decode)\b", str(error)):
                raise
    return call(obstore, client, key)
