"""One report about one card: `launch/gpu_report.sh`.

    driver ──process──► worker: one part ──► parts/NAME.jsonl, a line per measurement
      │                                            │
      └── after every part ◄───────────────────────┘
            ├── report.json
            └── report.md

A part that hangs, crashes or runs out of memory loses only what it has not written yet.
"""
