"""Table 2: the training objectives."""

from elva_jax.tools.study import Study, Variant
from elva_jax.tools.tables import figures


def get_study() -> Study:
    """The study."""
    return Study(
        config="configs/ablations.py:variant=table2_gen,size=tiny",
        question="What do the two guidance losses add to the generation loss (Table 2)?",
        variants={
            row: Variant(
                config=f"configs/ablations.py:variant=table2_{row},size=tiny",
                paper=figures.TABLE2[row].values["videomme"],
            )
            for row in ("gen", "gen_mse", "gen_con", "all")
        },
        paper="Table 2, Video-MME",
        note="The tiny model's teacher is a SigLIP of 0.2M parameters that has seen the same"
        " 8,000 pictures, not one that has seen billions: guidance can teach little here that"
        " answers do not.",
    )
