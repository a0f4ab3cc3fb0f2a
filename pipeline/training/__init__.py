"""Fine-tuning: tokenizing, batching, the DeepSpeed engine, checkpoints, export."""
