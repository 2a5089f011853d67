"""What this machine is and how fast: fingerprint, probe, doctor, measuring."""
