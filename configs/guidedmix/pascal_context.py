# Sec. 4.5: lambda below 0.4 (Table 8).
_base_ = ['../_base_/models/mitrans_r101.py', '../_base_/recipes/guidedmix.py']
data = dict(batch_size=8, crop=(480, 480))
method = dict(type='GuidedMix', lambda_max=0.4)
