"""Which tensor of a candidate belongs to which of the plan: by name, and through ends that are tied."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from adaptertool.architectures.gguf import ARCHITECTURE
from adaptertool.codecs import COMPUTED
from adaptertool.errors import shown
from adaptertool.files.checkpoint import Checkpoint, has_manifest
from adaptertool.files.jsonfile import objects
from adaptertool.files.reader import Inputs
from adaptertool.planning.layout import CONFIG
from adaptertool.reports.verify import TensorVerdict
from adaptertool.resolution.correspondence import is_buffer
from adaptertool.resolution.ties import FLAG
from adaptertool.spec.plan import Plan
from adaptertool.spec.tensors import DTYPE_BITS
from adaptertool.verification.config import config_problems
from adaptertool.verification.subject import Candidate

_DECLARED = {"bfloat16": "BF16", "float16": "F16", "float32": "F32", "float64": "F64"}
_OF_FILE = ("general.", "quantize.")  # how fields of GGUF begin that speak of the file, but for the architecture


class Pairs(NamedTuple):
    subjects: list[Candidate]  # to be judged
    misfits: list[tuple[Candidate, str]]  # with the code of what is wrong already: shape or dtype
    missing: list[str]
    extra: list[str]
    buffers: list[str]  # missing or extra, and of no account
    coded: list[Candidate]  # to be judged, of weights that the candidate stores as codes


def pair(plan: Plan, alpha: float, ends: Mapping[str, str], candidate: Checkpoint, inputs: Inputs) -> Pairs:
    """ends: tied and not stored in the base -> the tensor that they are tied to. The candidate has the plan's names, as
    far as its own correspond (correspondence.aligned), and the ends that it leaves out (with_tied)."""
    pairs, left = Pairs([], [], [], [], [], []), dict(candidate.tensors)
    steps = {step.spec.name: step for step in plan.steps()}
    for name, step in steps.items():
        ref = left.pop(name, None)
        if ref is None:
            (pairs.buffers if is_buffer(step.spec) else pairs.missing).append(name)
        else:
            _put(pairs, Candidate(step, step.at(alpha), ref, inputs), candidate)
    for name, ref in left.items():
        source = ends.get(name)
        if source is None:
            (pairs.buffers if is_buffer(ref.spec) else pairs.extra).append(name)
        else:  # an end that is tied, and is stored all the same
            step = steps[source]._replace(spec=steps[source].spec._replace(name=name))
            _put(pairs, Candidate(step, step.at(alpha), ref, inputs), candidate)
    return pairs


def _put(pairs: Pairs, subject: Candidate, candidate: Checkpoint) -> None:
    ours, theirs = subject.step.spec, subject.candidate.spec
    computed = ours.dtype in COMPUTED and theirs.dtype in COMPUTED
    if ours.shape != theirs.shape:
        pairs.misfits.append((subject, "shape-changed"))
    elif ours.dtype != theirs.dtype and (not computed or not _may_be_cast(ours.dtype, theirs.dtype, candidate)):
        pairs.misfits.append((subject, "dtype-changed"))
    elif subject.candidate.made is not None:
        pairs.coded.append(subject)
    else:
        pairs.subjects.append(subject)


def _may_be_cast(ours: str, theirs: str, candidate: Checkpoint) -> bool:
    """Whether a tensor may be cast: to the dtype that the candidate's config declares, or to one that holds more:
    models keep some tensors so."""
    return declared_dtype(candidate) in (None, theirs) or DTYPE_BITS[theirs] > DTYPE_BITS[ours]


def odd_ones(subjects: Sequence[Candidate], candidate: Checkpoint) -> list[Candidate]:
    """Tensors that are stored in another dtype than they should be, though the config does not ask for it and others of
    their dtype are not."""
    declared = declared_dtype(candidate)
    kept = {subject.dtype for subject in subjects if subject.dtype == subject.step.spec.dtype}
    return [
        subject
        for subject in subjects
        if subject.dtype not in (subject.step.spec.dtype, declared) and subject.step.spec.dtype in kept
    ]


def declared_dtype(checkpoint: Checkpoint) -> str | None:
    """The dtype that its config says it is stored in. None where it does not say, or is of several models."""
    if checkpoint.components:
        return None
    for part in objects(checkpoint.config or {}):
        for key in ("dtype", "torch_dtype"):
            if isinstance(part.get(key), str):
                return _DECLARED.get(part[key].removeprefix("torch."))
    return None


def _field_problems(ours: Mapping[str, Any] | None, theirs: Mapping[str, Any] | None) -> Iterator[str]:
    """The fields in which two GGUF files differ, but for those that speak of the file."""
    if ours is None or theirs is None:
        return
    for key in sorted({*ours, *theirs}):
        if ours.get(key) != theirs.get(key) and (key == ARCHITECTURE or not key.startswith(_OF_FILE)):
            how = "is missing" if key not in theirs else "is new" if key not in ours else "is not the base's"
            yield f"the field {shown(key)} {how}; a merge changes none"


def problems_of(plan: Plan, base: Checkpoint, ends: Mapping[str, str], candidate: Checkpoint) -> Iterator[str]:
    """What is wrong beside the tensors: a config that makes loaders tie ends that differ, or leaves one without; fields
    of GGUF that are not those of the base."""
    yield from _field_problems(base.gguf, candidate.gguf)
    if base.config is None or base.is_file or candidate.is_file:
        return
    if candidate.config is None:
        yield "config.json is missing; no loader accepts that"
        return
    contents = [asset.content for asset in plan.assets if asset.name == CONFIG and asset.content is not None]
    expected = dict(json.loads(contents[0]) if contents else base.config)
    found, flag = dict(candidate.config), candidate.config.get(FLAG)
    if found.get("scale_decoder_outputs") is False:  # how transformers 5 says of T5 that its ends are not tied
        flag = False
    if expected.get(FLAG) is False and flag is not False and base.config.get(FLAG) is not False:
        yield f"config.json does not say {FLAG}: false; loaders would tie ends that are no longer the same"
    elif expected.get(FLAG) is False and flag is True:
        yield f"config.json says {FLAG}: true; loaders would tie ends that are not the same"
    if flag is False and (lost := [end for end in ends if end not in candidate.tensors]):
        yield f"config.json says {FLAG}: false, but {shown(lost[0])} is not stored; loaders would make it up"
    for config in (expected, found):  # said above; a head may be stored beside an embedding that it is tied to
        config.pop(FLAG, None)
    yield from config_problems(expected, found)


def hints(verdicts: Sequence[TensorVerdict], plan: Plan, base: Checkpoint, candidate: Checkpoint) -> Iterator[str]:
    """What the likeliest cause is where all that should have changed has changed the wrong way, or nothing should."""
    if not plan.sources and any(verdict.status == "untouched_changed" for verdict in verdicts):
        yield "no ADAPTER was given, so no tensor should differ from the base's"
    edited = [verdict for verdict in verdicts if verdict.status == "wrong"]
    turned = [v for v in edited if v.diagnosis == "negated" or (v.fitted_scale is not None and v.fitted_scale < -0.9)]
    made = has_manifest(base) and not has_manifest(candidate)
    if edited and (2 * len(turned) > len(edited) or made):
        why = "the change is in it the other way round"
        if made:
            why = f"{base.path} was made by adaptertool, and {candidate.path} was not"
        yield f"did you swap MERGED and BASE? {why}"


def notes_of(candidate: Checkpoint, pairs: Pairs, odd: Sequence[Candidate]) -> Iterator[str]:
    yield from candidate.notes
    if odd:
        more = f" and {len(odd) - 1} more" if len(odd) > 1 else ""
        yield (
            f"{shown(odd[0].name)}{more}: stored as {odd[0].dtype} where others of the base's {odd[0].step.spec.dtype} "
            "are not, and config.json does not ask for it; wrong with --strict"
        )
    if pairs.buffers:
        yield f"{len(pairs.buffers)} buffers that models compute for themselves are in one of both only"
    declared, stored = declared_dtype(candidate), {ref.spec.dtype for ref in candidate.tensors.values()}
    if declared is not None and declared not in stored and stored & set(COMPUTED):
        yield f"config.json declares {declared}, and no tensor is stored so: {', '.join(sorted(stored))}"
    for header in candidate.headers:
        if header.metadata and "format" not in header.metadata:
            yield f"{candidate.name_of(header)}: __metadata__ has no format; transformers refuses such a file"
            return
