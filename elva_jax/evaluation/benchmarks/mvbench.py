"""MVBench: 20 tasks of 200 questions each about short clips.

    accuracy of a task = 100 · right / all        main = mean over the tasks

An empty answer stays in its task's denominator.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

from elva_jax.data.example import Media
from elva_jax.evaluation.benchmarks import choice
from elva_jax.evaluation.benchmarks.base import Benchmark, Grade, Question, Scores
from elva_jax.evaluation.benchmarks.folder import Folder
from elva_jax.evaluation.benchmarks.tables import MediaFolder, Record, read_records, unique

FILES = "json/{task}.json for each of the 20 tasks, video/ with the extracted archives"
FRAMES_PER_SECOND = 3  # of the folders of frames that episodic_reasoning has instead of videos
# Folders in the archives, by task: some tasks have other videos of the same name.
TASKS = {
    "action_sequence": "star/Charades_v1_480",
    "action_prediction": "star/Charades_v1_480",
    "action_antonym": "ssv2_video",
    "fine_grained_action": "Moments_in_Time_Raw/videos",
    "unexpected_action": "FunQA_test/test",
    "object_existence": "clevrer/video_validation",
    "object_interaction": "star/Charades_v1_480",
    "object_shuffle": "perception/videos",
    "moving_direction": "clevrer/video_validation",
    "action_localization": "sta/sta_video",
    "scene_transition": "scene_qa/video",
    "action_count": "perception/videos",
    "moving_count": "clevrer/video_validation",
    "moving_attribute": "clevrer/video_validation",
    "state_change": "perception/videos",
    "fine_grained_pose": "nturgbd",
    "character_order": "perception/videos",
    "egocentric_navigation": "vlnqa",
    "episodic_reasoning": "tvqa/frames_fps3_hq",
    "counterfactual_inference": "clevrer/video_validation",
}


def read(folder: Folder) -> tuple[Question, ...]:
    """The questions of the 20 tasks below a folder; see `FILES`.

    Raises:
      DataError: a task's file is missing or damaged.
    """
    media = MediaFolder(folder.path)
    files = {task: folder.find((f"json/{task}.json", f"{task}.json"), FILES) for task in TASKS}
    return unique(
        (
            _question(record, task, number, media)
            for task, paths in files.items()
            for number, record in enumerate(read_records(paths))
        ),
        str(folder.path),
    )


def _question(record: Record, task: str, number: int, media: MediaFolder) -> Question:
    options = record.texts("candidates")
    folder = TASKS[task]
    video = media.locate(
        record.text("video"), record.key, folders=(f"video/{folder}", f"videos/{folder}", folder)
    )
    clip = _excerpt(video, record)
    return choice.choice_question(
        f"{task}/{number}",
        [_in_frames(clip) if Path(str(clip.source)).is_dir() else clip],
        record.text("question"),
        options,
        choice.text_index(record.text("answer"), options, record.key),
        categories={"task": task},
    )


def _excerpt(video: Media, record: Record) -> Media:
    """The video with the bounds of its record.

    Some bounds are outside the video: reading it says so, and the question is unreadable.
    """
    start = record.seconds("start")
    return dataclasses.replace(video, start=start or 0.0, end=record.seconds("end"))


def _in_frames(clip: Media) -> Media:
    """The bounds of a folder of frames, which is read as one frame per second."""
    end = None if clip.end is None else clip.end * FRAMES_PER_SECOND
    return dataclasses.replace(clip, start=clip.start * FRAMES_PER_SECOND, end=end)


def score(grades: Sequence[Grade]) -> Scores:
    """The mean of the tasks that were asked, and the accuracy over all questions."""
    categories = choice.by_category(grades, known={"task": tuple(TASKS)})
    return Scores(
        main=choice.mean(list(categories["task"].values()), "mean over tasks"),
        others=(choice.accuracy(grades),),
        categories=categories,
        statuses=choice.statuses(grades),
    )


BENCHMARK = Benchmark(
    name="mvbench",
    title="MVBench",
    kind="choice",
    reader=read,
    grade=choice.grade_choice,
    score=score,
    files=FILES,
    scoring="mean of the 20 tasks' accuracies; beside it the accuracy over all questions",
)
