"""Routes of a web application for the files of a page."""

import os
from collections.abc import Mapping

from fastapi import APIRouter
from starlette.exceptions import HTTPException
from starlette.responses import FileResponse, Response

METHODS = ["GET", "HEAD"]


def add_page(routes: APIRouter, path: str, file: str) -> None:
    """Show an HTML file at a path."""

    async def page() -> Response:
        return FileResponse(file, media_type="text/html; charset=utf-8")

    routes.add_api_route(path, page, methods=METHODS, include_in_schema=False)


def add_assets(routes: APIRouter, prefix: str, folder: str, assets: Mapping[str, str]) -> None:
    """Give the files of a folder that ``assets`` names, each with its media type, below a path; no others."""

    async def asset(name: str) -> Response:
        if name not in assets:
            raise HTTPException(404)
        return FileResponse(os.path.join(folder, name), media_type=assets[name])

    routes.add_api_route(f"{prefix}/{{name}}", asset, methods=METHODS, include_in_schema=False)
