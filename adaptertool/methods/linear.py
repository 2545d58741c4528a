"""Task arithmetic: W + Σ w_i·(T_i − W).

Source: G. Ilharco et al., "Editing models with task arithmetic" (arXiv:2212.04089).
"""

from adaptertool.methods.method import Method, weighted_sum

LINEAR = Method("linear", weighted_sum, dense=True)
