# OHEM keeps 200,000 pixels of a rank's four images.
_base_ = '../_base_/recipes/unimatch_cityscapes.py'
model = dict(
    pretrained='open-mmlab://resnet50_v1c', backbone=dict(depth=50), decode_head=dict(sampler=dict(min_kept=50000)))
method = dict(type='PrevMatch', interval='6 epochs', threshold=0.0, past_trust='mean')
