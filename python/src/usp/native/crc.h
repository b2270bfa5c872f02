/* CRC-32 (IEEE, as zlib's) of a ring's record: over 2n+2 as 8 bytes, the length as 4, and the payload. */
#ifndef USP_CRC_H
#define USP_CRC_H

#include <stddef.h>
#include <stdint.h>

/* Sets up the table, and looks what the processor has. Any number of calls, from any thread. */
void usp_crc_init(void);

/* done is 2n+2; the payload has words times 8 bytes, at any address. After usp_crc_init only. */
uint32_t usp_record_crc(uint64_t done, const void *payload, size_t words);

/* The two ways to compute it, for tests. */
uint32_t usp_record_crc_table(uint64_t done, const void *payload, size_t words);
int usp_crc_has_clmul(void);

#endif
