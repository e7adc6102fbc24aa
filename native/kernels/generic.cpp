// Every kernel for the instruction set "generic".
#define ROOKERY_ISA generic
#include "isa_generic.h"
#include "table.inl"
