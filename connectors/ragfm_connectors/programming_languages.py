"""Programming languages by the suffixes of their files."""

LANGUAGES = {
    ".bash": "shell", ".c": "c", ".cc": "c++", ".cpp": "c++", ".cs": "c#", ".css": "css", ".cxx": "c++",
    ".dart": "dart", ".ex": "elixir", ".exs": "elixir", ".go": "go", ".h": "c", ".hpp": "c++", ".hs": "haskell",
    ".java": "java", ".jl": "julia", ".js": "javascript", ".jsx": "javascript", ".kt": "kotlin", ".lua": "lua",
    ".m": "objective-c", ".mjs": "javascript", ".ml": "ocaml", ".php": "php", ".pl": "perl", ".proto": "protobuf",
    ".ps1": "powershell", ".py": "python", ".pyi": "python", ".r": "r", ".rb": "ruby", ".rs": "rust",
    ".scala": "scala", ".sh": "shell", ".sql": "sql", ".swift": "swift", ".tf": "terraform", ".ts": "typescript",
    ".tsx": "typescript", ".zig": "zig",
}  # fmt: skip
"""The name of the language, lower-case, by suffix."""
