# Sec. IV-B: 10 crops of 321 a step.
_base_ = './three_stage_paper.py'
data = dict(batch_size=10, crop=(321, 321), scale=(0.5, 1.5), flip=0.5)
