/*
 * What the writer and the reader of packed files share: names, dtypes and shapes of the tensors.
 */
#ifndef HEADROOM_PACKED_FILE_H
#define HEADROOM_PACKED_FILE_H

#include "headroom/pack.h"

struct hr_packed_file {
    hr_packed_file_info info; /* its strings point at path and model */
    char *path, *model;
    int32_t *layer;          /* [info.layer_count] */
    hr_packed_layer *layers; /* [info.layer_count] */
};

#define HR_PACKED_FILE_VERSION "1"

/* The parts of an operand in the order they are written. */
typedef enum hr_packed_part {
    HR_PART_CODES = 0,
    HR_PART_SCALE,
    HR_PART_ZERO_POINT,
    HR_PART_MEAN,
    HR_PART_LSE_BIAS,
    HR_PART_COUNT
} hr_packed_part;

enum { HR_PACKED_NAME_BYTES = 64 };

/* "model.layers.{layer}.self_attn.{q,k,v}" and the part's suffix. */
void hr_packed_part_name(int32_t layer, hr_operand operand, hr_packed_part part,
                         char name[HR_PACKED_NAME_BYTES]);

/*
 * The tensor a part is in the file, as a view without data. `packed` must be measured; smoothed
 * says that K of its layer has the mean transform. False when the operand has no such part.
 */
bool hr_packed_part_view(const hr_packed *packed, bool smoothed, hr_packed_part part,
                         hr_tensor *out);

/* The part's memory in the struct; not for CODES, which are stored without slack in ROWS. */
void *hr_packed_part_data(const hr_packed *packed, hr_packed_part part);

/* Operand 0 .. 2 of a layer. */
const hr_packed *hr_packed_layer_operand(const hr_packed_layer *layer, hr_operand operand);
const hr_operand_recipe *hr_recipe_of_operand(const hr_recipe *recipe, hr_operand operand);

#endif
