/* The passes over stored numbers that take the time of a run, called through ctypes (compiled.py). Each function has a
   twin in numpy, in the Python file that calls it; the tests hold both together, at every level of instructions.

   setup.py compiles this file once for each level. No contraction (-ffp-contract=off): where a product and a sum are to
   be rounded once, it is written. */

#include "level.h"

#include "convert.h"

#include "product.h"

#include "blockwise.h"

#include "double_double.h"

#include "fused.h"

#include "blake3.h"

#include "statistics.h"

#include "difference.h"

#include "there_back.h"

#include "small.h"

#include "decode.h"

#include "strips.h"
