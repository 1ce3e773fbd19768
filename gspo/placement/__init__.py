"""A run's parts placed by Ray: samplers, reward workers, the policy itself; on one machine or on many."""
