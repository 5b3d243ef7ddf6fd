/* SPDX-License-Identifier: MIT */
/* Telling the service manager how far a foreground server is. */
#ifndef CLI_NOTIFY_H
#define CLI_NOTIFY_H

/* Send "READY=1" or the like to $NOTIFY_SOCKET, when there is one. */
void notify_manager(const char *message);

#endif
