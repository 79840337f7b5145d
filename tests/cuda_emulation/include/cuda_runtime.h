// All of it is in cuda.h.
#include "cuda.h"
