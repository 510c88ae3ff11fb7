/* The rules by which texts are split, where a vocabulary's file only names them. */
#ifndef CF_MODELS_TOKENIZER_RULES_H
#define CF_MODELS_TOKENIZER_RULES_H

#include "runtime/tokenizer.h"

extern const cf_tokenizer_rules cf_tokenizer_rules_known;

#endif
