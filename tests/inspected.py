"""What `inspect` says of an adapter."""

from __future__ import annotations

from adaptertool.reports.inspect import AdapterFacts, InspectReport

Q, UP = "model.layers.0.self_attn.q_proj", "model.layers.0.mlp.up_proj"


def adapter_of(report: InspectReport) -> AdapterFacts:
    assert report.what == "adapter" and report.adapter is not None and report.checkpoint is None
    return report.adapter
