"""Task arithmetic: W + Σ w_i·(T_i − W)."""

from adaptertool.methods.method import Method, always, weighted_sum

LINEAR = Method(
    name="linear",
    source='G. Ilharco et al., "Editing models with task arithmetic" (arXiv:2212.04089)',
    combine=weighted_sum,
    sums=True,
    elementwise=always,
)
