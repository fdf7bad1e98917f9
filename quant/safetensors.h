#include "headroom/safetensors.h"
