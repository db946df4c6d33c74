"""KEDA manifests as data: ScaledJobs that spawn one container per message."""
