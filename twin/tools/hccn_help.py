# ruff: noqa: E501, W291  # the vendor's lines, byte for byte
"""What `hccn_tool -h` prints on A2 (recorded); parts of it follow many error messages.

A section per command: a line ``hccn_tool -i devid -<command>``, its options, an empty line.
"""

A2 = """\
hccn_tool -i devid -ip
   [-inet6]             : use IPv6, when not specified default is IPv4
   [-s]                 : set ip cfg 
       address %s       : set IPv4 ip address, such as x.x.x.x
       netmask %s       : set IPv4 ip netmask, such as x.x.x.x
       ipv6_address  %s : set IPv6 ip address, such as x:x:x:x:x:x:x:x
       prefix_length %d : set prefix length of IPv6 address, [0 ~ 128]
   [-g]                 : get ip address and netmask/prefix_length 

hccn_tool -i devid -gateway
   [-inet6]            : use IPv6, when not specified default is IPv4
   [-s]                : set gateway cfg 
       gateway %s      : set IPv4 gateway, such as x.x.x.x
       ipv6_gateway %s : set IPv6 gateway, such as x:x:x:x:x:x:x:x
   [-g]                : get gateway address 

hccn_tool -i devid -netdetect
   [-inet6]            : use IPv6, when not specified default is IPv4
   [-s]                : set net detect cfg 
       address %s      : set net detect IPv4 ip address, such as x.x.x.x
       ipv6_address %s : set net detect IPv6 ip address, such as x:x:x:x:x:x:x:x
   [-g]                : get net detect cfg 

hccn_tool -i devid -lldp
   [-g]        : get lldp cfg 

hccn_tool -i devid -local_lldp
   [-g]        : get local lldp cfg 
   [-s]            : set local lldp port id tlv info
       subtype %s  : subtype for specifying cmd type
                     set mac for display mac address, set ifname for ifname number

hccn_tool -i devid -mac
   [-s]        : set mac cfg
       mac %s  : set mac address, such as xx:xx:xx:xx:xx:xx
   [-g]        : get mac cfg

hccn_tool -i devid -cfg
   recovery    : recovery cfg 
   status      : config status 

hccn_tool -i devid -link
   [-s]                   : set the eth ports link status
       down               : shut down eth port 
       up                 : start up eth port 
       down_fault_time %d : set linkdown warning filter time (0~3s)
   [-g]                   : get the eth ports link status, UP or DOWN 
       [down_fault_time]    : get linkdown warning filter time 

hccn_tool -i devid -dscp_to_tc
   [-s]        : set dscp to tc map 
       dscp %u : set dscp value, [0 ~ 63] 
       tc   %u : set tc value, [0 ~ 3] 
   [-g]        : get the all dscp to tc map info 
       [dscp %u] : get the specify dscp of tc map info, [0 ~ 63] 

hccn_tool -i devid -shaping
   [-s]        : set shaper port bw limit 
       bw_limit %d : set port bw limit rate, from 10000Mbps to 200000Mbps 
   [-g]        : get shaper port bw limit & max bw capability 

hccn_tool -i devid -mtu
   [-s]        : set mtu cfg 
       size %d : set mtu size, ETH from 68 to 9702
   [-g]        : get mtu cfg

hccn_tool -i devid -net_health
   [-g]        : get net health status

hccn_tool -i devid -arp
   [-g]        : get arp table
   [-a]        : add arp table
        dev %s : eth device, such as eth0
         ip %s : ip address, such as x.x.x.x
        mac %s : mac address, such as xx:xx:xx:xx:xx:xx
   [-d]        : del arp table
        dev %s : eth device, such as eth0
         ip %s : ip address, such as x.x.x.x

hccn_tool -i devid -route
   [-inet6]             : use IPv6, when not specified default is IPv4
   [-g]                 : get route table
   [-a]                 : add route
       address %s       : destination IPv4 address, such as x.x.x.x
       netmask %s       : destination IPv4 netmask, such as x.x.x.x
       gateway %s       : IPv4 gateway address, such as x.x.x.x
       ipv6_address  %s : destination IPv6 address, such as x:x:x:x:x:x:x:x
       prefix_length %d : prefix length of ipv6_address, [0 ~ 128]
       next_address  %s : IPv6 next address, such as x:x:x:x:x:x:x:x
   [-d]                 : del route
       address %s       : destination IPv4 address, such as x.x.x.x
       netmask %s       : destination IPv4 netmask, such as x.x.x.x
       ipv6_address  %s : destination IPv6 address, such as x:x:x:x:x:x:x:x
       prefix_length %d : prefix length of IPv6 address, [0 ~ 128]
   [-c]                 : clear route

hccn_tool -i devid -pci
   [-g]        : get device pci table

hccn_tool -i devid -context
   [-g]        : get the roce context info
       qpc %d  : get the specify qpc context info, [0 ~ 1048576]
       aeqc %d : get the specify aeqc context info, [0 ~ 1048576]
       ceqc %d : get the specify ceqc context info, [0 ~ 1048576]
       cqc %d  : get the specify cqc context info, [0 ~ 1048576]
       mpt %d  : get the specify mpt context info, [0 ~ 1048576]

hccn_tool -i devid -reg
   [-g]        : get reg info 
   [-a]        : input the reg offset that you want to read
       reg %x  : reg offset, range [0 ~ 0x0007ffff] and [0x10000000 ~ 0x11ffffff], the reg addr must be 4-byte aligned

hccn_tool -i devid -optical
   [-g]               : get optical info 
        [v2]            : get optical new version info 
        [dfx_cfg]       : get optical dfx info 
   [-t]               : set optical loopback 
        0             : cancel optical module loopback 
        1             : set host side input loopback 
        2             : set media side output loopback 
        3             : set host side output loopback 
        4             : set media side input loopback 
   [-dump]            : dump optical EEPROM reg info 
        all           : get all EEPROM information of the optical modules and print the information to logs 
        page %x       : get the specified page [0 ~ FF] information of the optical modules 
   [-s]               : set optical info 
        hard_reset    : hard reset optical 
        soft_reset    : soft reset optical 
        low_power     : switch optical to low power 
        high_power    : switch optical to high power 
        tx_disable    : disable the tx 
                  all : disable all the lane tx 
        tx_enable     : enable the tx 
                  all : enable all the lane tx 

hccn_tool -i devid -stat
   [-g]        : get packet statistics
   [-c]        : clear packet statistics

hccn_tool -a  -cfg
    recovery   : recovery cfg 

hccn_tool -i devid -tls
   [-s]        : set tls cfg
       enable %d : set tls enable, 0: disable, 1: enable
       host      : if you want to set tls enable on host, you need to add host flag on the tail
       or
       alarm %d  : set tls alarm(days), [0, 7 ~ 180], 0: disable tls alarm, only support on npu
       host      : if you want to set tls alarm on host, you need to add host flag on the tail
       or
       path %s   : set tls cfg file path, such as xxx
       pri %s    : set tls private key, only support pem file format
       pub %s    : set tls public cert, only support pem file format
       ca1 %s    : set tls first level CA, only support pem file format
       ca2 %s    : set tls second level CA, only support pem format
       ......            
       ca14 %s   : set tls fourteen level CA(the deepest CA level), only support pem format
       crl %s    : set tls certificate revocation list, only support crl format
       host      : if you want to set tls certificate suite on host, you need to add host flag on the tail
       or
       path %s   : set tls cfg file path, such as xxx
       crl %s    : set tls certificate revocation list separately, only support device-side
   [-g]        : get tls cfg
       host      : if you want to get tls certificate suite on host, you need to add host flag on the tail
   [-c]        : clear tls cfg
       host      : if you want to clear tls certificate suite on host, you need to add host flag on the tail
       or
       crl       :  clear certificate revocation list separately, only support device-side

hccn_tool -i devid -tlsca
   [-importcert] : import CA cert to device
       alias %s  : tls CA cert alias, such as xxx, must match this format: [a-zA-Z0-9-_]{1,63}
       path %s   : tls CA cert pem file path, such as /home/tmp.pem
   [-deletecert] : delete CA cert of device
       alias %s  : tls CA cert alias, such as xxx, must match this format: [a-zA-Z0-9-_]{1,63}
       or
       all       : all CA cert
   [-showcert]   : list CA cert of device
       alias %s  : tls CA cert alias, such as xxx, must match this format: [a-zA-Z0-9-_]{1,63}
       or
       all       : all CA cert

hccn_tool -i devid -version
   [-g]        : get version info

hccn_tool -i devid -vnic
   [-g]        : get vnic link status, ip address and netmask 

hccn_tool -i devid -process
   [-g]        : get device process info

hccn_tool -i devid -udp
   [-s]                    : set roce port
       port %d             : roce UDP port, range [4097 ~ 65535]
           [sip %s]        : if you want to add udp port based on ip pair, you need to add source ip address
           [dip %s]        : if you want to add udp port based on ip pair, you need to add destination ip address
       auto                : use random roce UDP port
       multi_qp            : use multi qp mode set UDP source port
           count %d        : set the count of port, range [2 ~ 32]
           port %s         : set the range of ports number, format port-port, or port,...,port, range [4097 ~ 65535]
       code                : use code mode set UDP source port
   [-t]                    : select algorithm mode
       nslb-dp             : select nslb mode set UDP source port
           [listen_port %d]: set hccp socket listen port, range[10000 ~ 57999], default 16668
   [-g]                    : get roce udp port and ip pair list
       [sip %s]            : if you want to query one ip pair, you need to add source ip address
       [dip %s]            : if you want to query one ip pair, you need to add destination ip address
   [-d]                    : delete one configured roce UDP port based on ip pair
       port %d             : roce UDP port, range [4097 ~ 65535]
       sip %s              : source ip address
       dip %s              : destination ip address
   [-c]                    : clear device's all roce port based on ip pair

hccn_tool -i devid -bandwidth
   [-g]        : get tx/rx bandwidth 
       [time %d] : specify time period to measure bandwidth, range [100 ~ 10000] ms

hccn_tool -i devid -status
   [-g]        : get netdev status

hccn_tool -i devid -generic
   [-s]        : set generic info
       static_speed %d : set port speed, the function supports 200000/100000 switching rate.
                  note : shaper cfg will become invalid if bw_limit is bigger than speed
       auto_adapt : auto adapt speed base on port speed and optical speed capabilities.
             note : mutually exclusive with the static_speed

hccn_tool -i devid -link_stat
   [-g]        : get link history statistics
   [-c]        : clear link history statistics

hccn_tool -i devid -eth_test
   [-g]        : get the self-check result of eth ports
       offline : mode, now only offline is supported.

hccn_tool -i devid -hw_stats
   [-g]        : get hw resource statistics

hccn_tool -i devid -udhcpc
   [-inet6]             : use IPv6, when not specified default is IPv4
   [-a]                 : acquire dhcp ip
       [timeout %d]       : timeout, optional, default is 3 seconds, range [1 ~ 300] seconds
       [quit]             : exit after obtaining lease, optional, default not exit
   [-r]                 : release dhcp ip

hccn_tool -i devid -dcqcn
   [-s]        : set the setting of dcqcn
       enable %d        : set the ability of dcqcn, 0: disable, 1: enable.
       alg_mode %d      : set the value of alg_mode(0 or 1)
       or
       cnp_dscp %d      : set the value of cnp_dscp [0 ~ 63]
       or
       alg_mode %d      : set the value of alg_mode(0 or 1)
       f %d             : set the value of iterations [0 ~ 255]
       g_shift %d       : set the value of g_shift [0 ~ 15]
       al %d            : set the value of alpha_min [0 ~ 255]
       tkp %d           : set the value of tkp_shift [0 ~ 15]
       max_speed %d     : set the value of max_speed ( 100000 or 200000)
       ai %d            : set the value of ai [0 ~ 65535]
       tmp %d           : set the value of tmp_shift [0 ~ 15]
       alp %d           : set the value of alp [0 ~ 65535]
       cnp_time %d      : set the value of cnp_time [0 ~ 255]
       alp_shift %d     : set the value of alpha_shift[0 ~ 15]
       max_des_shift %d : set the value of max_des_shift [0 ~ 9]
   [-g]        : get the setting of dcqcn
       status         : get the value of enable, alg_mode
       or
       cnp_dscp       : get the value of cnp_dscp
       or
       param          : get the value of param
       alg_mode %d    : the value of alg_mode(0 or 1)

hccn_tool -i devid -roce_test
   [-inet6]             : use IPv6, when not specified default is IPv4
        ib_read_bw      : roce read bandwidth test
        ib_write_bw     : roce write bandwidth test
        ib_send_bw      : roce send bandwidth test
        ib_read_lat     : roce read latency test
        ib_write_lat    : roce write latency test
        ib_send_lat     : roce send latency test
        reset           : kill device's all perftest process, reset perftest
   [-d %s]              : set ib device
   [-s %d]              : set msg size [1 ~ 874736000]B
   [-a]                 : run sizes from 2 till 2^23
   [-b]                 : measure bidirectional bandwidth (default unidirectional)
   [-f %d]              : measure results within margins [0 ~ D/2-1]
   [-D %d]              : run test for a customized period of seconds (default 5) [1 ~ 500]
   [-l %d]              : post list of WQEs of <list size> size (instead of single post) [1 ~ 1024]
   [-m %d]              : mtu size : [256 ~ 4096] (default port mtu 256,512,1024,2048,4096)
   [-ib %d]             : --ib-port=<port>  Use port <port> of IB device, and the value must be 1 (default 1)
   [-p %d]              : --port=<port> Listen on/connect to port <port> (default 18515) [0 ~ 65535]
   [-q %d]              : --qp=<num of qp's>  Num of qp's(default 1) [1 ~ 100]
   [-Q %d]              : --cq-mod  Generate Cqe only after <--cq-mod> completion [1 ~ 1024]
   [-t %d]              : --tx-depth=<dep>  Size of tx queue (default 128) [1 ~ 15000]
   [-u %d]              : --qp-timeout=<timeout> timeout value is 4 usec * 2 ^(timeout) (default 14) [0 ~ 255]
   [-V]                 : --version  Display version number
   [-x %d]              : --gid-index=<index> Test uses GID with GID index (ROCEV2 is recommended) [0 ~ 5]
   [-tclass %d]         : set number of tos[0 ~ 255]
   [-report_gbits]      : Report Max/Average BW of test in Gbit/sec (instead of MiB/sec) (SYMMETRIC)
                         Note: MiB=2^20 byte, while Gb=10^9 bits. Use these formulas for conversion:
                         Factor=10^9/(2^20*8)=119.2; MiB=Gb_result * factor; Gb=MiB_result/factor
   [-S %d]              : set service level(default 0) [0 ~ 7]
   [-bind_source_ip %s] : Source IP of the interface used for connection establishment.
                         By default taken from routing table.
   [-n %d]              : set number of exchanges [5 ~ 20000]
   [address %s]         : set service IPv4 or IPv6 address, such as x.x.x.x or x:x:x:x:x:x:x:x
   [-tcp]               : set tcp connect

hccn_tool -i devid -speed
   [-g]        : get the speed of eth ports

hccn_tool -i devid -duplex
   [-g]        : get the duplex mode of eth ports

hccn_tool -i devid -fec
   This device does not support switching fec mode

hccn_tool -i devid -pfc
   [-s]        : set pfc cfg
       bitmap %s  : set pfc cfg, each bit corresponds to one priority, such as 0,0,0,0,1,0,0,0
   [-g]        : get pfc cfg

hccn_tool -i devid -tc_cfg
   [-s]        : set tc cfg
       size %s : set the buffer size of tc [0 ~ 7], size shall not be less than 6272 when it is non-zero, and total size must be smaller than 1797120, such as 816640,81920,81920,816640,0,0,0,0
  waterline %s : set the waterline of tc [0 ~ 7], waterline must not be larger than size, such as 780800,46080,46080,780800,0,0,0,0
   [-g]        : get tc cfg

hccn_tool -i devid -cur_tc_buf
   [-g]        : get the maximum tc Bufer currently and then clear the value
       tc %d   : set the tc id [0 ~ 7]

hccn_tool -i devid -prio_tc
   [-s]        : set the mapping between each priority and TC, TC range [0 ~ 3]
       map %s  : set the mapping between each priority and TC, each number corresponds to one TC, such as 0,0,0,0,0,0,0,0
   [-g]        : get the mapping between priority and TC

hccn_tool -i devid -tc_qos
   [-s]              : set TC QoS parameters
       tsa <params>  : set the scheduling algorithm for each Traffic Class,
                       TC range: [0 ~ 3], TC count [1 ~ 4], valid types: 'ets' or 'strict'
                       Example: 0:ets,1:strict,2:ets,3:strict
       OR
       tcbw <params> : set bandwidth allocation for ETS-enabled TCs (in percent)
                       Sum of 'ets' tcbw must be = 100%, The 'strict' tcbw must be 0.
   [-g]              : get current TC QoS settings

hccn_tool -i devid -ping
   [-inet6]            : use IPv6, when not specified default is IPv4
   [-g]                : get ping result
       address %s      : set net detect IPv4 ip address, such as x.x.x.x
       ipv6_address %s : set net detect IPv6 ip address, such as x:x:x:x:x:x:x:x
      pkt %d           : ping cfg, the packet data length, [0 ~ 65507]

hccn_tool -i devid -send_arp
   [-s]        : set the setting of gratuitous arp
       enable %s  : set the ability of the gratuitous arp, 0: disable, 1: enable,
       or
       period %s  : set the period of the gratuitous arp, [1 ~ 3600] (s)
   [-g]        : get the setting of gratuitous arp

hccn_tool -i devid -ip_rule
   [-g]        : get rule table
   [-a]        : add rule
        dir %s : from or to
         ip %s : destination ip, such as x.x.x.x
      table %s : table index, such as xx, [0 ~ 255]
   [-d]        : del rule
        dir %s : from or to
         ip %s : destination ip, such as x.x.x.x

hccn_tool -i devid -ip_route
    [-g]       : get route table
      [table %s] : table index, such as xx, [0 ~ 255]
    [-a]       : add rule
         ip %s : ip addr, such as x.x.x.x
    ip_mask %s : ip mask bit, such as x, [0 ~ 32]
        via %s : forward ip, such as x.x.x.x
        dev %s : ethernet device, such as ethx
      table %s : table index, such as xx, [0 ~ 255]
    [-d]       : del rule
         ip %s : ip region, such as x.x.x.x
    ip_mask %s : ip mask bit, such as x, [0 ~ 32]
      table %s : table index, such as xx, [0 ~ 255]

hccn_tool -i devid -serdes
   [-g]        : get the serdes info(snr) of eth ports

hccn_tool -i devid -neigh
   [-inet6]             : use IPv6
   [-g]                 : get neigh table
   [-a]                 : add neigh 
        dev %s          : eth device, such as eth0
        ipv6_address %s : IPv6 ip address, such as x:x:x:x:x:x:x:x
        mac %s          : mac address, such as xx:xx:xx:xx:xx:xx
   [-d]                 : del neigh 
        dev %s          : eth device, such as eth0
        ipv6_address %s : IPv6 ip address, such as x:x:x:x:x:x:x:x

hccn_tool -i devid -scdr
   [-g]                : get cdr info
   [-t/--type [0 ~ 8]]  0: stop eth adapt config
                        1: start eth adapt config
                        2: stop eth cdr loopback
                        3: start eth cdr loopback
                        4: get cdr reg info
                        5: get cdr snr and history snr
                        6: enable cdr reset
                        7: disable cdr reset
                        8: get huyang FMEA info
   [-reg_read]            : read reg for scdr
                address %s: scdr reg, needs to be a multiples of 4, such as 0x08000000
                           the range is:[0x02000000, 0x02079FFF],
                                        [0x04000000, 0x0400FFFF],
                                        [0x08000000, 0x080FFFFF]
                nums    %d: read nums, [1 ~ 62]

hccn_tool -i devid -down_data
    [-g]       : get eth link down data

hccn_tool -i devid -traceroute
   [-inet6]            : use IPv6, when not specified default is IPv4
   [-g]                : get the traceroute info
       -m      %d      : max_llt, set the max number of hops (max TTL to be reached)
                         Default is 30 [1 ~ 255]
       -t      %d      : tos, set the TOS (IPv4 type of service: [0 ~ 63]) or
                         TC (IPv6 traffic class : [0 ~ 255]) value for outgoing packets
       -w      %d      : waittime, set the number of seconds to wait for
                         response to a probe (default is 3) [1 ~ 60] s
       -sport  %d      : set source port [0 ~ 65535]
       -dport  %d      : set dest port [0 ~ 65535]
       -d      %s      : trace the route to dest ip
   reset               : kill device's all traceroute process, reset traceroute status

hccn_tool -i devid -xsfp_reset
   [-g]                : get configuration of xsfp reset 
   [-s]                : set configuration of xsfp reset 
        max_times  %d  : set the max time of xsfp reset [0 ~ 30]
        wait_times %d  : set the wait time of xsfp reset [0 ~ 40]*1.5s

hccn_tool -i devid -stat_extra
   [-g]                : get packet extra statistics
   [-c]                : clear packet extra statistics

hccn_tool -i devid -fec_err
   [-g]                : get FEC error histogram statistics

hccn_tool -i devid -auto_downgrade
   [-g]                : get the downgrade lane status
   [-s]                : set the configuration about downgrade lane
        enable %d      : set the downgrade lane switch, 0:disable, 1:enable
        filter_time %d : set the filter time (default 7s) of downgrade lane, [3 ~ 8] s

hccn_tool -i devid -pfc_stat
   [-g]        : get the pfc all priorities pause duration 
   [-c]        : clear the pfc all priorities pause duration

hccn_tool -i devid -tc_stat
   [-g]                : get packet statistics
   [-c]                : clear packet statistics

hccn_tool -i devid -hilink_info
     [-t/--type [0 ~ 1]]   0: get npu hilink stable register info
                           1: get npu link down hilink register info

hccn_tool -i devid -qp_info
   [-g]        : get info of all active qp

hccn_tool -i devid -bad_thd
   [-g]                : get ROCE cw_bad_cnt_thd 
   [-s]                : set configuration of ROCE cw_bad_cnt_thd 
        high_limit %d  : set the max value of cw_bad_cnt_thd,  [3 ~ 14] (default 3)
                   note: setting high_limit > 3 will increase bad codewords

hccn_tool -i devid -pfc_storm
   [-g]                  : get the configuration parameters of the pfc storm watchdog
   [-s]                  : set the configuration parameters of the pfc storm watchdog
        mode           %d : the mode of the pfc storm watchdog (default 0)
                            mode: 0 [Disable PFC storm detection]
                            mode: 1 [Only warn and err counts arecounted, and no closing action is performed]
                            mode: 2 [Enable PFC storm detection]
        close_time     %d : duration of pfc storm watchdog automatic shutdown PFC [0 ~ 100](100ms) (default 1)
        detect_period  %d : pfc storm watchdog detection period [10 ~ 100](100ms) (default 20)
        warn_thrd      %d : threshold value for PFC storm watchdog alarm [40 ~ 80](%) (default 50)
        err_thrd       %d : threshold value of PFC storm watchdog reporting error [60 ~ 100](%) (default 90)
        close_time <= detect_period; warn_thrd < err_thrd

hccn_tool -i devid -hccs_ping
   [-g]                : get the supernodes ping result
       address   %s    : set net detect IPv4 ip address, such as x.x.x.x
       or
       sdid      %s    : set net detect device sdid value. this value conflicts with address, one of the two is used
       pkt       %d    : ping cfg, the packet data length, [1792 ~ 3000] (byte) (default 1792)
       cnt       %d    : ping cfg, the total count of packet send, [1 ~ 1000] (default 3)
       interval  %d    : ping cfg, the interval between receiving a reply packet and sending the next packet, [0 ~ 10] (ms) (default 0)
       timeout   %d    : ping cfg, the timeout waiting time for each packet, [1 ~ 20000] (ms)

hccn_tool -i devid -scdr_reset
   [-g]                    : get cdr reset info.
   [-s]                    : set cdr reset info.
       delay_time %d       : cdr reset delay time, [0 ~ 60] (s) (default 0)

hccn_tool -i devid -esd
   [-g]        : get the scdr esd result

hccn_tool -i devid -diagnostic
   [-g]                        : query current diagnostic status.
   [-s]                        : configure diagnostic mode and I2C operations.
       enable on/off           : Control diagnostic mode.
                                   - on: Enable diagnostic mode (default duration: 60 minutes).
                                   - off: Disable diagnostic mode.
       duration <time>         : Duration of active diagnostic in minutes, optional, [5 ~ 720] (default 60).
       OR
       i2c_mode read/write     : Perform direct I2C access to target device.
                                   - read: Read from slave device
                                   - write: Write to slave device, reg value must be provided.
       object <name>           : target device, only xsfp/cpld is supported now
           xsfp                : optical module
               page <index>    : Page index of the target register space, such as 'page 10', 'page 0xa', [0x0 ~ 0xFF]
               offset <index>  : Register offset within the specified page. [page0:0 ~ 255, other page:128 ~ 255]
               size <index>    : Size of data, [read:1 ~ 128, write:1 ~ 4]
               [value]         : Data value to write.
                               : Maximum 4 bytes (32-bit) allowed.
                               : Only applicable for 'write' operation.
           OR
           cpld                : CPLD (read only, will print all info at once)

hccn_tool -i devid -optical_snr
   [-g]                        : get optical snr query info.
   [-s]                        : set optical snr query info.
       status enable/disable   : optical snr query switch status (only influence the optical not on the allowlist).
                                 - enable: enable optical snr query switch.
                                 - disable: disable optical snr query switch.

hccn_tool -i devid -mem_reserve
   [-s]              : set memory reserve
       type <type>   : process type, only support 'pdccl'
       size <value>  : reserve size in MB, [0,2,4,8,16,32,64,128,256,512]
   [-g]              : get memory reserve

hccn_tool -i devid -dump
  [-t]                         : dump target
      adapt_info               : link state machine adapt info

"""

# The A3 build differs in one line.
A3 = A2.replace("ETH from 68 to 9702\n", "ETH from 68 to 9702, RoH from 68 to 4192\n")
