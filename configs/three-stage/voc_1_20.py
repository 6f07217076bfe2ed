# Sec. IV-B, 1/20 of the labels: lambda = 5/4.
_base_ = './voc_1_50.py'
method = dict(consistency_weight=1.25, pseudo_weight=1.25)
