"""How numbers are stored, one codec for each dtype that arithmetic is done on. To add one: write the file, add one line
here. Tensors of all other dtypes are only ever copied as bytes."""

from adaptertool.codecs.codec import Codec
from adaptertool.codecs.floats import BF16, F16, F32, F64

CODECS: tuple[Codec, ...] = (BF16, F16, F32, F64)
BY_DTYPE = {codec.name: codec for codec in CODECS}
COMPUTED = BY_DTYPE.keys()  # the dtypes that arithmetic is done on, in the order of CODECS

__all__ = ["BF16", "BY_DTYPE", "CODECS", "COMPUTED", "F16", "F32", "F64", "Codec"]
