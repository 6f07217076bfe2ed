# SupOnly of Table 1: the batch size of every method, and as many passes over the labels as with all of them (Sec. 4,
# rules 1 and 2).
_base_ = '../_base_/recipes/gct_voc_deeplabv2.py'
method = dict(type='Supervised')
data = dict(batch_size=4)
schedule = dict(samples_of='labeled')
