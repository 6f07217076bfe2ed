_base_ = [
    '../_base_/models/mitrans_r18s.py',
    '../_base_/schedules/adamw_2k.py',
    '../_base_/runtime/default.py',
    '../_base_/methods/guidedmix.py',
]
# A weight of 1, as in Eq. (11), held the slim encoder up in short runs (260 steps, seed 10).
method = dict(classifier_weight=0.1)
