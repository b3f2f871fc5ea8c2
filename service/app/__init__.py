"""The process: builds, starts and stops the components of a server, and supervises its workers."""
