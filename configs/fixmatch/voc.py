# FixMatch in UniMatch's tables: no EMA, so the teacher is a copy of the student after every iteration.
_base_ = '../_base_/recipes/unimatch_voc.py'
method = dict(type='FixMatch', decay=0.0)
