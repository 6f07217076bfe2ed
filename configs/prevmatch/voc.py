_base_ = '../_base_/recipes/unimatch_voc.py'
method = dict(type='PrevMatch')
