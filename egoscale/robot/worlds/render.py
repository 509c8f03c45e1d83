"""Headless pictures of many worlds through one OpenGL context."""

from __future__ import annotations

import ctypes.util
import os
import sys
from typing import Any

import numpy as np
from numpy.typing import NDArray

_PACKAGES = "Debian packages: libegl1 libegl-mesa0 libgl1-mesa-dri (EGL), or libosmesa6 (OSMesa)"


def _backend() -> str:
    """Name of the headless OpenGL door of this machine: "egl" or "osmesa".

    Raises:
        RuntimeError: MUJOCO_GL names a door that needs a display, or neither library is installed.
    """
    asked = os.environ.get("MUJOCO_GL", "").lower()
    if asked in ("egl", "osmesa"):
        return asked
    if asked not in ("", "glfw"):
        raise RuntimeError(f"MUJOCO_GL={asked!r}: set it to egl or osmesa, or leave it unset. {_PACKAGES}")
    if ctypes.util.find_library("EGL"):
        return "egl"
    if ctypes.util.find_library("OSMesa"):
        return "osmesa"
    raise RuntimeError(
        f"the tabletop world draws without a display, but neither EGL nor OSMesa is installed. {_PACKAGES}"
    )


def load_mujoco() -> Any:
    """Import MuJoCo for headless use.

    Raises:
        RuntimeError: MuJoCo or a headless OpenGL is not installed.
    """
    # llvmpipe starts a thread per core unless told otherwise; at 64 px its locks cost more than the drawing
    # (measured: 900-1,100 frames per second with threads, 2,300-6,000 without). Read once, when GL is made.
    os.environ.setdefault("LP_NUM_THREADS", "0")
    os.environ["MUJOCO_GL"] = _backend()
    try:
        import mujoco
    except ImportError as error:
        raise RuntimeError(
            f"the tabletop world needs MuJoCo and a headless OpenGL ({error}). Install egoscale[sim]. {_PACKAGES}"
        ) from error
    return mujoco


class Renderer:
    """Draws worlds compiled from one MJCF (or copies of its model with other colours, sizes, camera).

    Args:
        model: the compiled MuJoCo model whose textures and sizes the context holds.
        image_size_px: height and width of a picture.
        camera: id of the camera.

    Raises:
        RuntimeError: no headless OpenGL could be started.
    """

    def __init__(self, model: Any, image_size_px: int, camera: int) -> None:
        mujoco = load_mujoco()
        self._mujoco = mujoco
        self.image_size_px = image_size_px
        try:
            self._gl = _gl_context(image_size_px)
        except Exception as error:  # drivers raise what they like: OpenGL.error, RuntimeError, AttributeError
            raise RuntimeError(f"{os.environ['MUJOCO_GL']} could not be started ({error}). {_PACKAGES}") from error
        self._gl.make_current()
        model.vis.global_.offwidth = max(model.vis.global_.offwidth, image_size_px)
        model.vis.global_.offheight = max(model.vis.global_.offheight, image_size_px)
        model.vis.quality.offsamples = 0
        model.vis.quality.shadowsize = 0
        self._context = mujoco.MjrContext(model, mujoco.mjtFontScale.mjFONTSCALE_50.value)
        mujoco.mjr_setBuffer(mujoco.mjtFramebuffer.mjFB_OFFSCREEN.value, self._context)
        self._scene = mujoco.MjvScene(model, maxgeom=100)
        for flag in (
            mujoco.mjtRndFlag.mjRND_SHADOW,
            mujoco.mjtRndFlag.mjRND_REFLECTION,
            mujoco.mjtRndFlag.mjRND_SKYBOX,
        ):
            self._scene.flags[int(flag)] = 0
        self._option = mujoco.MjvOption()
        self._perturb = mujoco.MjvPerturb()
        self._camera = mujoco.MjvCamera()
        self._camera.type = int(mujoco.mjtCamera.mjCAMERA_FIXED)
        self._camera.fixedcamid = camera
        self._rect = mujoco.MjrRect(0, 0, image_size_px, image_size_px)
        self._category = int(mujoco.mjtCatBit.mjCAT_ALL)
        self._flipped = np.empty((image_size_px, image_size_px, 3), np.uint8)

    def draw(self, model: Any, data: Any, out: NDArray[np.uint8] | None = None) -> NDArray[np.uint8]:
        """Picture [H, W, 3] uint8 of a world whose `data` has been moved forward."""
        mujoco = self._mujoco
        if self._gl is None:
            raise RuntimeError("this renderer was closed; make a new one")
        self._gl.make_current()  # another renderer of this process may have drawn since
        mujoco.mjv_updateScene(model, data, self._option, self._perturb, self._camera, self._category, self._scene)
        mujoco.mjr_render(self._rect, self._scene, self._context)
        mujoco.mjr_readPixels(self._flipped, None, self._rect, self._context)
        picture = np.empty_like(self._flipped) if out is None else out
        picture[:] = self._flipped[::-1]  # OpenGL rows go up
        return picture

    def close(self) -> None:
        """Free the OpenGL context; a second call does nothing."""
        gl, self._gl = self._gl, None
        if gl is None:
            return
        # Freed while another context is current, its numbers would delete that one's textures and buffers.
        gl.make_current()
        self._context.free()
        gl.free()

    def __del__(self) -> None:
        # At the end of the interpreter the libraries may be gone before we are, and the driver cleans up.
        if getattr(self, "_gl", None) is not None and not sys.is_finalizing():
            self.close()


def _gl_context(image_size_px: int) -> Any:
    if os.environ["MUJOCO_GL"] == "egl":
        from mujoco.egl import GLContext
    else:
        from mujoco.osmesa import GLContext
    return GLContext(image_size_px, image_size_px)
