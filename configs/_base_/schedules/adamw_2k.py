# For encoders with ImageNet weights: the rate of the heads, and less for the encoder; tuned on the split and training seed 10 of
# 44 labeled photos, 1,500 iterations. A model that starts from random weights learns more from 5e-3 for all.
schedule = dict(iterations=2000, warmup=0.05, power=0.9, validations=5)
optimizer = dict(type='AdamW', lr=3e-3, weight_decay=0.01)
paramwise = dict(custom_keys=dict(backbone=dict(lr_mult=0.3)))
