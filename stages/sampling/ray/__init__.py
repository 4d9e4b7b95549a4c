"""The sampler of many workers: engines in processes that Ray starts, behind the protocol of one."""
