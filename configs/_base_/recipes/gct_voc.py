# Ke et al., ECCV 2020, Sec. 4.1: crops of 321 after random scaling and flips; 2 labelled and 2 unlabelled images on each of
# their GPUs, N samples in all for every method (schedule.samples).
_base_ = ['../runtime/default.py']
data = dict(batch_size=2, crop=(321, 321), scale=(0.5, 1.5), flip=0.5)
evaluation = dict(mode='whole')
