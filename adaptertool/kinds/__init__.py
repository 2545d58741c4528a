"""The kinds of adapter, one file each. To add one: write the file, add one line here."""

from typing import Protocol

from adaptertool.kinds.adalora import ADALORA
from adaptertool.kinds.beft import BEFT
from adaptertool.kinds.boft import BOFT
from adaptertool.kinds.c3a import C3A
from adaptertool.kinds.deft import DEFT
from adaptertool.kinds.delora import DELORA
from adaptertool.kinds.difference import DIFFERENCE
from adaptertool.kinds.dora import DORA
from adaptertool.kinds.dora_channels import DORA_CHANNELS
from adaptertool.kinds.dora_scale import DORA_OVER
from adaptertool.kinds.fourierft import FOURIERFT
from adaptertool.kinds.frod import FROD
from adaptertool.kinds.full import ALONE, FULL
from adaptertool.kinds.gain import GAIN
from adaptertool.kinds.glora import GLORA, GLORA_BIAS
from adaptertool.kinds.gralora import GRALORA
from adaptertool.kinds.hira import HIRA
from adaptertool.kinds.hra import HRA
from adaptertool.kinds.ia3 import IA3, IA3_BIAS, IA3_INPUTS
from adaptertool.kinds.kasa import KASA
from adaptertool.kinds.kind import NORM, PRODUCT, Kind
from adaptertool.kinds.loha import LOHA
from adaptertool.kinds.loha_tucker import LOHA_TUCKER
from adaptertool.kinds.lokr import LOKR, LYCORIS_LOKR
from adaptertool.kinds.lora import LORA
from adaptertool.kinds.lora_tucker import LORA_TUCKER
from adaptertool.kinds.lycoris_glora import LYCORIS_GLORA
from adaptertool.kinds.lycoris_ia3 import LYCORIS_IA3
from adaptertool.kinds.lycoris_oft import LYCORIS_OFT
from adaptertool.kinds.miss import BONE, MISS
from adaptertool.kinds.offset import OFFSET
from adaptertool.kinds.oft import OFT
from adaptertool.kinds.osf import OSF
from adaptertool.kinds.peanut import PEANUT
from adaptertool.kinds.pvera import PVERA
from adaptertool.kinds.randlora import RANDLORA
from adaptertool.kinds.right_product import RIGHT_PRODUCT
from adaptertool.kinds.road import ROAD, ROAD_BIAS
from adaptertool.kinds.rotation import ROTATION
from adaptertool.kinds.shira import SHIRA
from adaptertool.kinds.supertuning import SUPERTUNING
from adaptertool.kinds.tinylora import TINYLORA
from adaptertool.kinds.unilora import UNILORA
from adaptertool.kinds.vblora import VBLORA
from adaptertool.kinds.vera import VERA
from adaptertool.kinds.waveft import WAVEFT

KINDS: tuple[Kind, ...] = (
    LORA,
    DORA,
    DORA_CHANNELS,
    OFFSET,
    FULL,
    DIFFERENCE,
    GAIN,
    LOHA,
    ROTATION,
    RIGHT_PRODUCT,
    ADALORA,
    VERA,
    HIRA,
    GRALORA,
    MISS,
    BONE,
    RANDLORA,
    DELORA,
    TINYLORA,
    VBLORA,
    GLORA,
    GLORA_BIAS,
    PEANUT,
    PVERA,
    UNILORA,
    LORA_TUCKER,
    *DORA_OVER,
    IA3,
    IA3_INPUTS,
    IA3_BIAS,
    SHIRA,
    LOHA_TUCKER,
    LOKR,
    LYCORIS_LOKR,
    LYCORIS_IA3,
    C3A,
    BEFT,
    SUPERTUNING,
    FOURIERFT,
    WAVEFT,
    OFT,
    LYCORIS_OFT,
    LYCORIS_GLORA,
    BOFT,
    ROAD,
    ROAD_BIAS,
    HRA,
    DEFT,
    OSF,
    KASA,
    FROD,
)
BY_NAME = {kind.name: kind for kind in KINDS}
# By format and tag
SPELLED = {(name, spelling.tag): (kind, spelling) for kind in KINDS for name, spelling in kind.spellings.items()}
SPELLED |= {(name, spelling.tag): (FULL, spelling) for name, several in ALONE.items() for spelling in several}


class OfKind(Protocol):
    @property
    def kind(self) -> str: ...


def kind_of(change: OfKind) -> Kind:
    """The kind of a module or an edit, which has its name."""
    return BY_NAME[change.kind]


__all__ = ["BY_NAME", "DORA", "FULL", "KINDS", "LORA", "NORM", "OFFSET", "PRODUCT", "SPELLED", "Kind", "kind_of"]
