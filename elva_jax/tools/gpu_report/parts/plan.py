"""`elva plan` for the measured steps: its memory and time, to be compared with the real ones."""

from __future__ import annotations

from elva_jax.tools.gpu_report import stages
from elva_jax.tools.gpu_report.context import Context


def run(context: Context) -> None:
    """Plans both stages on one device, on the CPU."""
    from elva_jax.parallel.mesh import make_mesh
    from elva_jax.tools.plan.hardware import DEVICES
    from elva_jax.tools.plan.program import fake_devices
    from elva_jax.tools.plan.stage import plan_stage

    fake_devices(1)
    kind = stages.device_kind(context)
    for stage in ("stage3",) if context.dry else ("stage3", "stage2"):
        with context.case(stage, device=kind) as row:
            task = stages.make(context, stage)
            plan = plan_stage(task, make_mesh(task.config.mesh), DEVICES[kind])
            row["memory"] = plan["memory"]
            row["seconds"] = [plan["seconds"]["overlapped"], plan["seconds"]["one_by_one"]]
