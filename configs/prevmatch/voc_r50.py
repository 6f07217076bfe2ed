_base_ = '../_base_/recipes/unimatch_voc.py'
model = dict(pretrained='open-mmlab://resnet50_v1c', backbone=dict(depth=50))
method = dict(type='PrevMatch')
