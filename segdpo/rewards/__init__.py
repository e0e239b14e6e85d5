"""What a mask is worth to a policy gradient: a metric against gold, a judge, a reward model, or a sum of them."""
