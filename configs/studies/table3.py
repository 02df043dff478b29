"""Table 3: the video patch embedding against a naive one."""

from elva_jax.tools.study import Study, Variant
from elva_jax.tools.tables import figures


def get_study() -> Study:
    """The study."""
    return Study(
        config="configs/ablations.py:variant=table3_naive,size=tiny",
        question="What does cross-attention into <FRAME> and <LINE> add to plain patches"
        " (Table 3)?",
        variants={
            row: Variant(
                config=f"configs/ablations.py:variant=table3_{row},size=tiny",
                paper=figures.TABLE3[row].values["videomme"],
            )
            for row in ("naive", "video")
        },
        paper="Table 3, Video-MME",
    )
