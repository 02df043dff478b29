"""One teacher against two: a SigLIP trained on pictures, and the same one trained on clips after.

The teachers come from a run of their own, which all seeds share:

    elva train --config configs/ablations.py:variant=table4_siglip_video,size=tiny
      --workdir runs/table4_siglip_video "--config.curriculum=('teacher', 'teacher_video')"
      --config.stages.teacher.steps=80 --config.stages.teacher_video.steps=30
      --config.stages.teacher_video.batch_size=16
"""

from elva_jax.tools.study import Study, Variant

TEACHERS = "runs/table4_siglip_video"
SHORT = {"curriculum": ("image", "video"), "stages.image.steps": 80, "stages.video.steps": 60}


def get_study() -> Study:
    """The study."""
    return Study(
        config="configs/ablations.py:variant=table4_siglip,size=tiny",
        question="Do two teachers at half the weight each guide better than one?",
        variants={
            "one teacher": Variant(overrides={**SHORT, "teacher.init_from": f"{TEACHERS}/teacher"}),
            "two teachers": Variant(
                config="configs/ablations.py:variant=table4_siglip+siglip_video,size=tiny",
                overrides={
                    **SHORT,
                    "teachers.siglip.init_from": f"{TEACHERS}/teacher",
                    "teachers.siglip.weight": 0.5,
                    "teachers.siglip_video.weight": 0.5,
                },
            ),
        },
        evaluate={"limit": 120, "written": False, "letters": False},
        note="140 steps from random weights: the model has learned which answers there are, and"
        " little of the videos.",
    )
