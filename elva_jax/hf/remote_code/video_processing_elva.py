"""`ElvaImageProcessor` for videos, as `AutoVideoProcessor` loads it."""

from transformers.feature_extraction_utils import BatchFeature

from .image_processing_elva import ElvaImageProcessor, flat_videos


class ElvaVideoProcessor(ElvaImageProcessor):
    """Cuts the patches of videos; its arguments are those of the image processor."""

    def preprocess(self, videos, return_tensors=None, **options) -> BatchFeature:
        """Patches of videos.

        Args:
          videos: one or several: paths, lists of frames, or arrays uint8 [T, H, W, 3].
          return_tensors: None and "np" for NumPy arrays, "pt" for PyTorch's.
          **options: other values of the settings, such as `num_frames`.

        Returns:
          BatchFeature of pixel_values, uint8 [B, N, P*P*3], zeros after the patches of a video, and
          grids, for each video the (rows, columns) of its frames.
        """
        found = [self.video(video, **options) for video in flat_videos(videos)]
        return self._features(found, return_tensors)


__all__ = ["ElvaVideoProcessor"]
