# Table 10: crops of 512.
_base_ = './voc.py'
data = dict(crop=(512, 512))
