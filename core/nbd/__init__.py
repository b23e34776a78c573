"""The NBD protocol (fixed newstyle), both ends.

No I/O: `handshake`, `options`, `transmission` (server), `client_handshake`, `client_transmission` (client), over
`receiving`. Shells: `server`, `connection`, `client`. An export is either a raw `RequestHandler` (capture) or an
`AsyncExport` behind `adapter.ExportHandler` (views, memory). What is supported: docs/nbd.md.

"spec" means the protocol document of the NetworkBlockDevice project, doc/proto.md, cited by section.
"""
