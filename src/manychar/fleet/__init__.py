"""The roles as processes: server, relay, worker, validation, local fleet.

Read in this order: engine, worker_process, listener, server_share, server_loop, server_process,
validation_process, relay_process, local_fleet, worker_pool, launch_options, training_command,
capacity.
"""
