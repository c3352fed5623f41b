"""The janitor: owns time. Deadlines, reclamation, sweeps for orphans, receipts."""
