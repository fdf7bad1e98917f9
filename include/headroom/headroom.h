/* All of Headroom's public interface. */
#ifndef HEADROOM_HEADROOM_H
#define HEADROOM_HEADROOM_H

#include "headroom/attention.h"
#include "headroom/audit.h"
#include "headroom/calibration.h"
#include "headroom/choice.h"
#include "headroom/device.h"
#include "headroom/format.h"
#include "headroom/kv_cache.h"
#include "headroom/machine.h"
#include "headroom/mixed.h"
#include "headroom/pack.h"
#include "headroom/recipe.h"
#include "headroom/recording.h"
#include "headroom/rope.h"
#include "headroom/safetensors.h"
#include "headroom/status.h"
#include "headroom/synth.h"
#include "headroom/tensor.h"

#endif
